"""The figures of docs/backup.md: versions and settings only; what was tried stands there in words."""

from __future__ import annotations

from claim import Page

page = Page("docs/backup.md")
page.given("Airflow 3.3.2 from PyPI", "a version: requirements.lock")
page.given("PostgreSQL 17.12", "a version of Debian's package")
page.given("OpenStack Swift 2.35", "a version of Debian's package")
page.given("Prometheus 2.53.3, Alertmanager 0.28.1", "versions of Debian's packages")
page.given("rclone 1.60.1", "a version of Debian's package")
page.given("nginx 1.26.3", "a version of Debian's package")
page.given("engine 20.10", "a version of Debian's package")
