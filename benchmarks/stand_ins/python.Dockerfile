# In the place of python:3.11.*-slim-bookworm: Debian's Python 3.11, whose pip may install beside Debian's packages.
FROM stand-in/debian:12
RUN rm -f /usr/lib/python3.11/EXTERNALLY-MANAGED && ln -sf python3 /usr/bin/python
CMD ["python3"]
