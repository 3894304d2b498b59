"""What strangers may send: a corpus of hostile uploads, and proof that each is refused and leaves nothing behind."""
