// Package auth turns the token of a request into an identity, or refuses it.
//
// The rule of the folder: a token is foreign bytes until its signature has been
// verified, and no byte of it may leave through an error, a log line or an
// explanation. Errors carry a stable code and a text that is made here, never
// one that a library made from the token.
//
// # What is accepted
//
// One Authorization header, scheme Bearer, holding a JWS in compact form (RFC
// 7515, section 3.1) of at most [MaxToken] bytes, signed by a configured issuer
// with one of the asymmetric algorithms allowed for that issuer, for one of its
// audiences, within its time. The iss claim picks the issuer before the
// signature is checked, and nothing else is decided by an unverified claim.
//
// Refused besides: the header members crit, jwk, jku, x5u and cty, types other
// than JWT, JOSE and at+jwt, members that occur twice in an object, nesting
// beyond 16 levels, logout tokens, and tokens that are bound to a key of the
// sender (cnf), since a bearer cannot prove that key.
//
// # Keys
//
// Discovery and key sets are fetched when first needed, in one flight an issuer,
// with a deadline, a limit of size and no redirect to another host. A set is
// refreshed after Config.KeyRefresh, so a key that the issuer withdrew stops being
// accepted, and while the issuer is down the last set serves until
// Config.KeyLifetime. A key id that is not in the set triggers a fetch, at most one
// in Config.RefetchInterval: rotation works, and a flood of invented key ids costs
// the issuer one request an interval.
//
// # The gateway's own tokens
//
// [Tokens] are given out for an issuer's token (RFC 8693) and hold the identity
// that it proved, no right beyond it and no longer life. They have a typ that no
// issuer's token may have, an issuer and audience that nobody else takes, and the
// jti of the token that they were given for, by which they are revoked too. One
// is never given out for another.
//
// # Credentials in other places
//
// [Bearer] refuses a request that carries a credential anywhere else:
//
//   - in the query: access_token, oauth_token, bearer_token, key and their like, in
//     any spelling that a server might decode to these, or any value that is itself a
//     JWT or a Google access token;
//   - in a header that Google or a proxy honours: X-Goog-Api-Key,
//     X-Goog-IAM-Authorization-Token, Proxy-Authorization, X-Serverless-Authorization;
//   - in a cookie that names a Google sign-in or a token. Other cookies are let
//     pass by Bearer, for a load balancer may have set them, and
//     [CredentialHeader] keeps all of them out of records and upstream.
package auth
