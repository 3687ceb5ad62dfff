# In the place of nginx:*-bookworm: Debian 13's nginx under that image's user, with the curl it has.
FROM stand-in/debian:13
RUN apt-get update && apt-get install -y --no-install-recommends nginx-light curl && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 101 nginx
CMD ["nginx", "-g", "daemon off;"]
