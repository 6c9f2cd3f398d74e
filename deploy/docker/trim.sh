#!/bin/sh
# Takes out of a Debian image with Python what a service never runs: package managers, perl, parts of Python. The list
# of packages stays, so that scanners still know what is there.
set -eu
rm -rf /usr/lib/apt /usr/bin/apt* /usr/lib/x86_64-linux-gnu/libapt-* /etc/apt /var/cache/* /var/log/* /var/lib/apt \
    /usr/bin/dpkg* /usr/bin/perl* /usr/lib/x86_64-linux-gnu/perl* /usr/share/perl* /usr/bin/pip* /usr/local/bin/pip* \
    /usr/lib/x86_64-linux-gnu/gconv /usr/share/doc /usr/share/man /usr/share/locale /usr/share/python-wheels \
    /usr/share/debconf /usr/share/zsh /usr/share/bash-completion /usr/lib/udev /usr/lib/systemd /root/.cache /tmp/*
for lib in /usr/lib/python3* /usr/local/lib/python3*; do
    if [ ! -d "$lib" ]; then continue; fi
    for part in ensurepip idlelib lib2to3 test tkinter turtledemo pydoc_data config-* \
        dist-packages/pip* dist-packages/setuptools* dist-packages/wheel* dist-packages/pkg_resources \
        site-packages/pip* site-packages/setuptools* site-packages/wheel* site-packages/pkg_resources; do
        rm -rf "$lib"/$part
    done
done
