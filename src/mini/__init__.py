"""The miniature world: a small but real text-to-image pipeline whose truth is known."""
