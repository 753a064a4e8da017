"""What is written to a results location and read back: records, intents, parts, leases, views, labels.

No Ray and no torch.
"""
