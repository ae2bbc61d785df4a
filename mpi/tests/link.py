#!/usr/bin/env python3
"""Two network namespaces, and a link between them that holds packets back for a time: `link.py FIRST SECOND SECONDS`.

Makes the namespaces, each with an interface `link` (10.9.0.1 and 10.9.0.2), and carries packets between them until it ends; then it
takes the namespaces away. On SIGUSR1 the link is cut: packets are taken and forgotten. Needs root and /dev/net/tun, and nothing
of the kernel that delays packets.
"""

import collections
import fcntl
import os
import selectors
import signal
import struct
import subprocess
import sys
import time

SET_INTERFACE, TUN, NO_INFO = 0x400454CA, 0x1, 0x1000
MTU = 9000


def run(*command):
    subprocess.run(command, check=True)


def interface(space, number):
    run("ip", "netns", "add", space)
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"rf{os.getpid() % 100000}-{number}"
    fcntl.ioctl(end, SET_INTERFACE, struct.pack("16sH22x", name.encode(), TUN | NO_INFO))
    run("ip", "link", "set", name, "netns", space)
    within = ("ip", "-n", space)
    run(*within, "link", "set", name, "name", "link", "mtu", str(MTU), "up")
    run(*within, "link", "set", "lo", "up")
    run(*within, "address", "add", f"10.9.0.{number}/24", "dev", "link")
    return end


def carry(ends, delay):
    open_link = True

    def cut(*_):
        nonlocal open_link
        open_link = False

    signal.signal(signal.SIGUSR1, cut)
    selector = selectors.DefaultSelector()
    for end in ends:
        selector.register(end, selectors.EVENT_READ)
    waiting = collections.deque()
    print("ready", flush=True)
    while True:
        until = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for key, _ in selector.select(until):
            try:
                while True:
                    packet = os.read(key.fd, MTU + 100)
                    other = ends[1 - ends.index(key.fd)]
                    waiting.append((time.monotonic() + delay, other, packet))
            except BlockingIOError:
                pass
        while waiting and waiting[0][0] <= time.monotonic():
            _, end, packet = waiting.popleft()
            if open_link:
                try:
                    os.write(end, packet)
                except BlockingIOError:
                    pass  # a queue that is full loses packets, and TCP sends them again


def main():
    spaces, delay = sys.argv[1:3], float(sys.argv[3])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        carry([interface(space, number + 1) for number, space in enumerate(spaces)], delay)
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], check=False)


main()
