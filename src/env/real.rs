//! The real world: tokio's clock and tasks, the kernel's files. TO BE WRITTEN
