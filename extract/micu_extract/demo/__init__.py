"""`micu-demo`: the media that it draws, and the tour that types the public commands."""
