# In the place of rclone/rclone: Debian 13's rclone.
FROM stand-in/debian:13
RUN apt-get update && apt-get install -y --no-install-recommends rclone && rm -rf /var/lib/apt/lists/*
WORKDIR /data
ENTRYPOINT ["rclone"]
