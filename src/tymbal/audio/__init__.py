"""Sound files: decoding, and what a folder of them holds.

Import what you need from the modules (`tymbal.audio.decode`, `tymbal.audio.scan`, …): this package imports none of them
by itself, so that decoding in a worker process does not wait for the tables.
"""
