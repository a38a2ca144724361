"""One file a study: what is learned from runs made for it."""
