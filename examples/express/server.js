// An Express app that knows nothing of Natsway.
const express = require('express');

const app = express();
// The fields of the proxy on this machine are believed.
app.set('trust proxy', 'loopback');
app.use(express.json());

app.get('/health', (_, response) => response.json({ well: true }));
app.get('/', (request, response) => {
  const link = `${request.protocol}://${request.get('host')}/`;
  response.json({ hello: 'world', client: request.ip, link });
});
app.post('/sum', (request, response) => {
  response.json({ sum: request.body.numbers.reduce((sum, number) => sum + number, 0) });
});

const server = app.listen(process.env.PORT, '127.0.0.1');
process.on('SIGTERM', () => server.close(() => process.exit(0)));
