//! Rust client of one Ringlog node or cluster: produce, consume, topics. TO BE WRITTEN
