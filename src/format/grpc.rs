//! gRPC framing: TO BE WRITTEN
