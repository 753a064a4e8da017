"""A decoder process that does what its image says: crash, hang, hoard memory."""

# The decoder itself, which dies, hangs or swallows memory at bytes that begin like this.
SABOTEUR = """
import ctypes, sys, time
from fcdd import images
from fcdd.io import decoder_process
format_of = images._format_of
def sabotaged(data):
    if data.startswith(b"CRASH"):
        ctypes.string_at(0)
    if data.startswith(b"HANG"):
        time.sleep(60)
    if data.startswith(b"HOARD"):
        bytearray(8 * 1024**3)
    return format_of(data)
images._format_of = sabotaged
decoder_process.main(sys.argv[1:])
"""
