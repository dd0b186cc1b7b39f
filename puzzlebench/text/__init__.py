"""Text and tokens: documents from the machine itself or from files, packed into sequences of one length."""
