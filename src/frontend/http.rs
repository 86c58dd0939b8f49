//! JSON, health and metrics over HTTP on the ops thread. TO BE WRITTEN
