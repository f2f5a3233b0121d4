//! Suite (next).
