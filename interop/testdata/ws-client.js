// A client of the npm package ws: node ws-client.js OPTIONS, which are JSON:
//   url, origin, ca (a file)   where it connects, and as whose page
//   messages, seconds          how many messages it has echoed, spread over how long
//   hold                       then wait for the connection to end
// It prints lines of JSON: {"open":true}, {"echoed":N}, {"pong":true},
// {"closed":CODE,"reason":...}, {"refused":STATUS,"decision":...}, {"error":...}.
const fs = require('fs');
const crypto = require('crypto');
const WebSocket = require('ws');

const o = JSON.parse(process.argv[2]);
const say = (line) => console.log(JSON.stringify(line));
const options = { origin: o.origin, ca: o.ca && fs.readFileSync(o.ca), perMessageDeflate: true };
const ws = new WebSocket(o.url, ['chat', 'echo'], options);
const waiting = [];

// content of message i: mostly small, now and then large; text and binary.
function content(i) {
  if (i % 1000 === 999) return crypto.randomBytes(1 << 20);
  if (i % 50 === 49) return crypto.randomBytes(20000).toString('hex');
  return i % 2 ? `message ${i} \u00e9` : Buffer.from(`message ${i}`);
}

ws.on('unexpected-response', (_, r) => {
  say({ refused: r.statusCode, decision: r.headers['parley-decision'] });
  process.exit(0);
});
ws.on('error', (err) => say({ error: err.message }));
ws.on('close', (code, reason) => {
  say({ closed: code, reason: String(reason) });
  process.exit(0);
});
ws.on('pong', (data) => say({ pong: String(data) === 'are you there' }));
ws.on('message', (data, binary) => {
  const sent = waiting.shift();
  if (binary !== Buffer.isBuffer(sent) || !Buffer.from(sent).equals(data)) {
    say({ error: 'the echo differs' });
    process.exit(1);
  }
});
ws.on('open', async () => {
  say({ open: true, protocol: ws.protocol });
  ws.ping('are you there');
  const began = Date.now();
  for (let i = 0; i < o.messages; i++) {
    const data = content(i);
    waiting.push(data);
    ws.send(data);
    while (waiting.length > 16) await new Promise((r) => setImmediate(r));
    const due = began + (o.seconds * 1000 * i) / o.messages;
    if (due > Date.now()) await new Promise((r) => setTimeout(r, due - Date.now()));
  }
  while (waiting.length > 0) await new Promise((r) => setTimeout(r, 5));
  say({ echoed: o.messages });
  if (!o.hold) ws.close(1000, 'done');
});
