// A provider for interop/oidc_test.go: oidc-provider as it is, with two resources
// whose access tokens are JWTs, and beside it /made, where its own keys and the jose
// library make what no honest provider would. It ends with its standard input.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import Provider from 'oidc-provider';
import * as jose from 'jose';

const { ISSUER, CERT, KEY, KEYS } = process.env;

// The keys are named by the test, so that a restart can change them.
const pairs = {};
for (const [alg, kid] of Object.entries(JSON.parse(KEYS))) {
  pairs[alg] = { kid, ...(await jose.generateKeyPair(alg, { extractable: true })) };
}
const jwks = { keys: [] };
for (const [alg, { kid, privateKey }] of Object.entries(pairs)) {
  jwks.keys.push({ ...(await jose.exportJWK(privateKey)), kid, alg, use: 'sig' });
}

const provider = new Provider(ISSUER, {
  jwks,
  clients: [{
    client_id: 'shop', client_secret: 'canary-secret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [],
  }],
  scopes: ['orders.read', 'orders.write'],
  enabledJWA: { idTokenSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA'] },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      // https://orders.example/ES256/60 is a token for orders by ES256 that lives a minute.
      async getResourceServerInfo(_ctx, resource) {
        const { hostname, pathname } = new URL(resource);
        const [, alg, ttl] = pathname.split('/');
        const info = { scope: 'orders.read orders.write', audience: hostname.split('.')[0], accessTokenTTL: Number(ttl) };
        return alg === 'opaque' ? { ...info, accessTokenFormat: 'opaque' } : { ...info, accessTokenFormat: 'jwt', jwt: { sign: { alg, kid: pairs[alg].kid } } };
      },
    },
  },
});

// made signs what it is told with the provider's own key, or encrypts it.
async function made({ alg, header, payload, encrypt }) {
  if (encrypt) {
    const secret = crypto.getRandomValues(new Uint8Array(32));
    return new jose.EncryptJWT(payload).setProtectedHeader({ alg: 'dir', enc: 'A256GCM', kid: pairs[alg].kid, typ: 'at+jwt' }).encrypt(secret);
  }
  const all = { alg, kid: pairs[alg].kid, typ: 'at+jwt', ...header };
  for (const name of Object.keys(all)) if (all[name] === null) delete all[name];
  return new jose.SignJWT(payload).setProtectedHeader(all).sign(pairs[alg].privateKey, { crit: { exp: true } });
}

const callback = provider.callback();
createServer({ cert: readFileSync(CERT), key: readFileSync(KEY) }, (req, res) => {
  if (req.url !== '/made') return callback(req, res);
  let body = '';
  req.on('data', (chunk) => { body += chunk; });
  req.on('end', () => made(JSON.parse(body)).then((token) => res.end(token), (err) => { res.statusCode = 500; res.end(String(err)); }));
}).listen(new URL(ISSUER).port, '127.0.0.1', () => console.log('ready'));

process.stdin.on('end', () => process.exit(0)).resume();
