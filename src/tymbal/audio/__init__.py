"""Decoding of sound files, and scanning of folders of them.

Import what you need from the modules (`tymbal.audio.decode`, `tymbal.audio.scan`, …): this package imports none of them
by itself, so that decoding in a worker process does not wait for the tables.
"""
