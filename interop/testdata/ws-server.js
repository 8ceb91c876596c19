// A server of the npm package ws that echoes: node ws-server.js PORT. It prints a
// line when it listens, and one for each connection that ended.
const { WebSocketServer } = require('ws');

const server = new WebSocketServer({ host: '127.0.0.1', port: Number(process.argv[2]), maxPayload: 16 << 20 });
server.on('listening', () => console.log('listening'));
server.on('connection', (ws) => {
  ws.on('message', (data, binary) => ws.send(data, { binary }));
  ws.on('close', (code, reason) => console.log(`closed ${code} ${reason}`));
  ws.on('error', (err) => console.log(`error ${err.message}`));
});
