"""Names that are meant to do harm."""

HOSTILE = [
    "s3://b/<script>alert(1)</script>.png",
    "s3://b/\"quoted\" & 'apostrophe'; DROP TABLE scores--.png",
    "s3://b/line\nbreak\r\n=1+1.png",
    "=cmd|' /C calc'!A0",
    "s3://b/\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe\N{ZERO WIDTH SPACE}.png",
]
