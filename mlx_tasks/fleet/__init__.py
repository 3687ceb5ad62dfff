"""Machines that compute for a control plane elsewhere: their settings, their checks, and the worker itself."""
