//! Whole shards on a simulated disk.
