// The peer in the interop test: the official client library, driven by JSON lines on stdin.
import * as S from '@signalapp/libsignal-client';
import readline from 'node:readline';

const b64 = (bytes) => Buffer.from(bytes).toString('base64');
const raw = (text) => Uint8Array.from(Buffer.from(text, 'base64'));

class Sessions extends S.SessionStore {
  records = new Map();
  async saveSession(address, record) { this.records.set(address.toString(), record.serialize()); }
  async getSession(address) {
    const bytes = this.records.get(address.toString());
    return bytes ? S.SessionRecord.deserialize(bytes) : null;
  }
  async getExistingSessions(addresses) { return Promise.all(addresses.map((a) => this.getSession(a))); }
}
class Identities extends S.IdentityKeyStore {
  known = new Map();
  pair = S.IdentityKeyPair.generate();
  async getIdentityKey() { return this.pair.privateKey; }
  async getLocalRegistrationId() { return 4321; }
  async saveIdentity(address, key) { this.known.set(address.toString(), key); return S.IdentityChange.NewOrUnchanged; }
  async isTrustedIdentity(address, key) {
    const known = this.known.get(address.toString());
    return !known || known.equals(key);
  }
  async getIdentity(address) { return this.known.get(address.toString()) ?? null; }
}
class Prekeys extends S.PreKeyStore {
  records = new Map();
  async savePreKey(id, record) { this.records.set(id, record.serialize()); }
  async getPreKey(id) { return S.PreKeyRecord.deserialize(this.records.get(id)); }
  async removePreKey(id) { this.records.delete(id); }
}
class Signed extends S.SignedPreKeyStore {
  records = new Map();
  async saveSignedPreKey(id, record) { this.records.set(id, record.serialize()); }
  async getSignedPreKey(id) { return S.SignedPreKeyRecord.deserialize(this.records.get(id)); }
}
class Kem extends S.KyberPreKeyStore {
  records = new Map();
  async saveKyberPreKey(id, record) { this.records.set(id, record.serialize()); }
  async getKyberPreKey(id) { return S.KyberPreKeyRecord.deserialize(this.records.get(id)); }
  async markKyberPreKeyUsed() {}
}
class SenderKeys extends S.SenderKeyStore {
  records = new Map();
  async saveSenderKey(sender, id, record) { this.records.set(`${sender.toString()} ${id}`, record.serialize()); }
  async getSenderKey(sender, id) {
    const bytes = this.records.get(`${sender.toString()} ${id}`);
    return bytes ? S.SenderKeyRecord.deserialize(bytes) : null;
  }
}

const own = S.ProtocolAddress.new('js', 1);
const peer = S.ProtocolAddress.new('rust', 1);
const [sessions, ids, prekeys, signed, kem] = [new Sessions(), new Identities(), new Prekeys(), new Signed(), new Kem()];
const senderKeys = new SenderKeys();

const commands = {
  // Creates a prekey bundle: one-time prekey 20 if requested, signed prekey 10, KEM prekey 20.
  async bundle({ oneTime }) {
    const key = ids.pair.privateKey;
    const [one, sign, post] = [S.PrivateKey.generate(), S.PrivateKey.generate(), S.KEMKeyPair.generate()];
    const signature = key.sign(sign.getPublicKey().serialize());
    const kemSignature = key.sign(post.getPublicKey().serialize());
    await prekeys.savePreKey(20, S.PreKeyRecord.new(20, one.getPublicKey(), one));
    await signed.saveSignedPreKey(10, S.SignedPreKeyRecord.new(10, Date.now(), sign.getPublicKey(), sign, signature));
    await kem.saveKyberPreKey(20, S.KyberPreKeyRecord.new(20, Date.now(), post, kemSignature));
    return {
      identity: b64(ids.pair.publicKey.serialize()), registration: 4321,
      oneTime: oneTime ? b64(one.getPublicKey().serialize()) : null,
      signed: b64(sign.getPublicKey().serialize()), signature: b64(signature),
      kem: b64(post.getPublicKey().serialize()), kemSignature: b64(kemSignature),
    };
  },
  async begin(b) {
    const bundle = S.PreKeyBundle.new(
      b.registration, 1, b.oneTimeId ?? null, b.oneTime ? S.PublicKey.deserialize(raw(b.oneTime)) : null,
      b.signedId, S.PublicKey.deserialize(raw(b.signed)), raw(b.signature), S.PublicKey.deserialize(raw(b.identity)),
      b.kemId, S.KEMPublicKey.deserialize(raw(b.kem)), raw(b.kemSignature));
    await S.processPreKeyBundle(bundle, peer, own, sessions, ids);
    return { identity: b64(ids.pair.publicKey.serialize()) };
  },
  async seal({ text }) {
    const sealed = await S.signalEncrypt(new TextEncoder().encode(text), peer, own, sessions, ids);
    return { type: sealed.type(), bytes: b64(sealed.serialize()) };
  },
  async open({ type, bytes }) {
    const opened = type === S.CiphertextMessageType.PreKey
      ? await S.signalDecryptPreKey(S.PreKeySignalMessage.deserialize(raw(bytes)), peer, own, sessions, ids, prekeys, signed, kem)
      : await S.signalDecrypt(S.SignalMessage.deserialize(raw(bytes)), peer, own, sessions, ids);
    return { text: new TextDecoder().decode(opened) };
  },
  // Returns the own sender key with this id, a UUID, at its current iteration. Creates it if it does not exist.
  async distribute({ id }) {
    const distribution = await S.SenderKeyDistributionMessage.create(own, id, senderKeys);
    return { bytes: b64(distribution.serialize()) };
  },
  async accept({ bytes }) {
    const distribution = S.SenderKeyDistributionMessage.deserialize(raw(bytes));
    await S.processSenderKeyDistributionMessage(peer, distribution, senderKeys);
    return { id: distribution.distributionId() };
  },
  async sealGroup({ id, text }) {
    const sealed = await S.groupEncrypt(own, id, senderKeys, new TextEncoder().encode(text));
    return { bytes: b64(sealed.serialize()) };
  },
  async openGroup({ bytes }) {
    return { text: new TextDecoder().decode(await S.groupDecrypt(peer, senderKeys, raw(bytes))) };
  },
};

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { cmd, ...rest } = JSON.parse(line);
  try {
    console.log(JSON.stringify(await commands[cmd](rest)));
  } catch (error) {
    console.log(JSON.stringify({ error: `${error.name}: ${error.message}` }));
  }
}
