// A producer of tiny messages on Node's own HTTP/2 (nghttp2): several ProduceStreams on one connection, acks read at once or
// slowly. The few fields that it needs are encoded by hand, so that it needs no package.
//
//   node soak.mjs ADDRESS TOPIC STREAMS MESSAGES eager|slow
//
// Prints the number of acknowledged messages; exits with 1 and a sentence when an ack is missing or out of order.
import http2 from "node:http2";

// The pauses of a slow reader in ms: before its first ack, and after each so many bytes of acks.
const PAUSE_FIRST = 1000;
const PAUSE_EVERY_BYTES = 64 << 10;
const PAUSE = 100;

const PREFIX_BYTES = 5;

function fail(sentence) {
  console.error(sentence);
  process.exit(1);
}

function delimited(field, bytes) {
  if (bytes.length > 127) throw new Error("only short fields are encoded here");
  return Buffer.concat([Buffer.from([(field << 3) | 2, bytes.length]), bytes]);
}

/** A ProduceStreamRequest with its gRPC prefix: topic (1), one record (3) with a value (2). */
function request(topic, value) {
  const record = delimited(2, value);
  const message = Buffer.concat([delimited(1, Buffer.from(topic)), delimited(3, record)]);
  const prefix = Buffer.alloc(PREFIX_BYTES);
  prefix.writeUInt32BE(message.length, 1);
  return Buffer.concat([prefix, message]);
}

/** The base offset (2) and the count (3) of a ProduceStreamResponse. */
function parseAck(message) {
  const ack = { offset: 0, count: 0 };
  let at = 0;
  const varint = () => {
    let value = 0, scale = 1;
    for (;;) {
      const byte = message[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
      scale *= 128;
    }
  };
  while (at < message.length) {
    const tag = varint();
    const wire = tag & 7;
    if (wire === 2) {
      const bytes = varint();
      at += bytes;
      continue;
    }
    if (wire !== 0) fail(`an ack with a field of wire type ${wire}`);
    const value = varint();
    if (tag >> 3 === 2) ack.offset = value;
    if (tag >> 3 === 3) ack.count = value;
  }
  return ack;
}

/** Takes acks out of the pieces in which they come. */
class Acks {
  constructor(stream) {
    this.stream = stream;
    this.rest = Buffer.alloc(0);
    this.acked = 0;
    this.next = 0;
  }

  take(piece) {
    let data = this.rest.length > 0 ? Buffer.concat([this.rest, piece]) : piece;
    while (data.length >= PREFIX_BYTES) {
      const end = PREFIX_BYTES + data.readUInt32BE(1);
      if (data.length < end) break;
      const ack = parseAck(data.subarray(PREFIX_BYTES, end));
      if (ack.offset < this.next || ack.count !== 1) {
        fail(`stream ${this.stream}: offset ${ack.offset} is acknowledged behind ${this.next}`);
      }
      this.next = ack.offset + 1;
      this.acked += 1;
      data = data.subarray(end);
    }
    this.rest = Buffer.from(data);
  }
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function send(call, topic, stream, messages) {
  for (let n = 0; n < messages; n++) {
    if (!call.write(request(topic, Buffer.alloc(1 + (n % 60), stream)))) {
      await new Promise((resolve) => call.once("drain", resolve));
    }
  }
  call.end();
}

async function produce(session, topic, stream, messages, slow) {
  const call = session.request({
    ":method": "POST",
    ":path": "/ringlog.v1.Log/ProduceStream",
    "content-type": "application/grpc",
    te: "trailers",
  });
  let status = "none";
  const note = (headers) => {
    if (headers["grpc-status"] !== undefined) status = `${headers["grpc-status"]} ${headers["grpc-message"] ?? ""}`;
  };
  call.on("response", note);
  call.on("trailers", note);
  call.on("error", (error) => fail(`stream ${stream}: ${error.message}`));
  send(call, topic, stream, messages);
  const acks = new Acks(stream);
  if (slow) await sleep(PAUSE_FIRST);
  let unpaused = 0;
  for await (const piece of call) {
    acks.take(piece);
    unpaused += piece.length;
    if (slow && unpaused > PAUSE_EVERY_BYTES) {
      unpaused = 0;
      await sleep(PAUSE);
    }
  }
  if (status !== "0 " || acks.acked !== messages) {
    fail(`stream ${stream} ended after ${acks.acked} of ${messages} acks with status ${status}`);
  }
}

const [address, topic, streams, messages, pace] = process.argv.slice(2);
if (!["eager", "slow"].includes(pace)) fail("usage: soak.mjs ADDRESS TOPIC STREAMS MESSAGES eager|slow");
const session = http2.connect(`http://${address}`);
session.on("error", (error) => fail(`the connection: ${error.message}`));
session.on("goaway", (code) => code !== 0 && fail(`the server sends GOAWAY with code ${code}`));
const all = Array.from({ length: Number(streams) }, (_, stream) =>
  produce(session, topic, stream, Number(messages), pace === "slow"),
);
await Promise.all(all);
console.log(Number(streams) * Number(messages));
session.close();
