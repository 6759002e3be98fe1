#!/bin/sh
# Debian's Chromium, in which tests open the report: installed where it is missing and this user may install it. Never fails.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "Chromium is missing, so the tests that open the report in a browser are skipped: install the package chromium to run them"
    exit 0
fi
echo "Installing Chromium, in which tests open the report"
export DEBIAN_FRONTEND=noninteractive
{ apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core fonts-liberation; } >/dev/null 2>&1 ||
    echo "apt-get cannot install chromium, so the tests that open the report in a browser are skipped"
