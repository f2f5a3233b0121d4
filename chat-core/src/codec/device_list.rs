//! Signed device lists, on the wire and in stores.

use bytes::Bytes;

use super::{at_most, invalid};
use crate::model::device_list::SignedDeviceList;
use crate::model::error::Result;
use crate::proto;

pub(crate) fn list_to_proto(list: &SignedDeviceList) -> proto::SignedDeviceList {
    proto::SignedDeviceList {
        list: list.encoded().clone(),
        account_key: Bytes::copy_from_slice(list.account_key()),
        signature: list.signature().clone(),
    }
}

pub(crate) fn list_from_proto(raw: proto::SignedDeviceList) -> Result<SignedDeviceList> {
    at_most(raw.list.len(), 4096, "the device list is too large")?;
    let key = raw.account_key.as_ref().try_into().map_err(|_| invalid("an account key has 32 bytes"))?;
    SignedDeviceList::verify(raw.list, key, raw.signature)
}

/// Encodes a signed list for storage.
pub fn encode_list(list: &SignedDeviceList) -> Vec<u8> {
    prost::Message::encode_to_vec(&list_to_proto(list))
}

/// Decodes a list written by [`encode_list`] and verifies it again.
///
/// # Errors
/// The errors of [`SignedDeviceList::verify`].
pub fn decode_list(bytes: Bytes) -> Result<SignedDeviceList> {
    let raw = <proto::SignedDeviceList as prost::Message>::decode(bytes);
    list_from_proto(raw.map_err(|e| invalid("not a signed device list").caused_by(e))?)
}
