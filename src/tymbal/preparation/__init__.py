"""The parts of `tymbal prepare`: listing clips, planning windows and shards, building one shard, continuing."""
