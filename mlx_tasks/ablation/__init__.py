"""One part of the chain switched off at a time, and what that costs."""
