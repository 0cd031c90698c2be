// npm install nats; node hello.js
const { connect, JSONCodec } = require("nats");
const json = JSONCodec();

connect({ servers: process.env.NATS_URL || "nats://127.0.0.1:4222" }).then(async (client) => {
  for await (const message of client.subscribe("svc.hello.v1", { queue: "q" })) {
    const { name } = json.decode(message.data);
    const nobody = { _reply: { status: 400 }, body: { error: "who are you?" } };
    message.respond(json.encode(name ? { hello: name } : nobody));
  }
});
