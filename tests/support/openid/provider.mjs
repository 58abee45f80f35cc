// An OpenID provider for tests: the certified npm package oidc-provider, with users that a file names.
//
//   node provider.mjs CONFIGURATION.json
//
// The file holds issuer, port, clients, jwks, users (a file, read at each log-in) and clock_offset_s. It prints a
// line when it listens. Whoever types a user's name is that user: the package's own pages for development ask for it.
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { createServer as createTlsServer } from 'node:https'

const configuration = JSON.parse(readFileSync(process.argv[2], 'utf-8'))

// A provider whose clock is wrong: everything in this process has the shifted time.
const offsetMs = (configuration.clock_offset_s ?? 0) * 1000
if (offsetMs !== 0) {
  const RealDate = Date
  globalThis.Date = class extends RealDate {
    constructor (...values) {
      super(...(values.length ? values : [RealDate.now() + offsetMs]))
    }

    static now () {
      return RealDate.now() + offsetMs
    }
  }
}

const { default: Provider } = await import('oidc-provider')

function claimsOf (name) {
  return JSON.parse(readFileSync(configuration.users, 'utf-8'))[name]
}

const provider = new Provider(configuration.issuer, {
  clients: configuration.clients,
  jwks: configuration.jwks,
  cookies: { keys: ['only-for-tests'] },
  claims: { openid: ['sub'], profile: ['preferred_username', 'name'], groups: ['groups'] },
  scopes: ['openid', 'groups'],
  conformIdTokenClaims: configuration.claims_in_user_info ?? true,
  enabledJWA: { idTokenSigningAlgValues: ['RS256', 'ES256'] },
  pkce: { required: () => true },
  // Cookies of a provider whose clock is slow must not have expired in the browser; its ID tokens may.
  ttl: { Interaction: 86400, Session: 86400, Grant: 86400, DeviceCode: 600, AccessToken: 600, IdToken: 600 },
  features: { deviceFlow: { enabled: true }, devInteractions: { enabled: true } },
  findAccount: (_context, name) => {
    const claims = claimsOf(name)
    return claims && { accountId: name, claims: () => ({ sub: name, ...claims }) }
  },
  // Everything is granted: what is tested is not the provider's question.
  loadExistingGrant: async (context) => {
    const { client, session, params, provider: here } = context.oidc
    const grant = new here.Grant({ clientId: client.clientId, accountId: session.accountId })
    grant.addOIDCScope(params.scope)
    await grant.save()
    return grant
  }
})

const server = configuration.certificate
  ? createTlsServer({ cert: readFileSync(configuration.certificate), key: readFileSync(configuration.key) }, provider.callback())
  : createServer(provider.callback())
server.listen(configuration.port, '127.0.0.1', () => console.log(`listening at ${configuration.issuer}`))
process.on('SIGTERM', () => process.exit(0))
