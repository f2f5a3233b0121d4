//! Protobuf types generated from `proto/chat/v1` by `make generate`.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

include!("proto/generated/chat.v1.rs");

pub(crate) mod store {
    include!("proto/generated/chat.store.v1.rs");
}

pub(crate) mod node {
    include!("proto/generated/chat.node.v1.rs");
}
