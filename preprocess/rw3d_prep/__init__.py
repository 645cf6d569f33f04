"""Offline preparation: from the frames of a video and sparse labels to reconstructed, labelled scene stores."""
