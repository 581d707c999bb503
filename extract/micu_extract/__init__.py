"""Raw video, audio, flow and text in, feature shards out: the command line tool `micu-extract`."""
