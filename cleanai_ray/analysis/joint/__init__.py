"""Several runs as one body of evidence: networks, each trained several times, pruned from several draws of images."""
