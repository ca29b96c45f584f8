// Package envoy renders the Envoy bootstrap that stands in front of the
// gateway, and lints any bootstrap against the invariants that the gateway's
// guarantees rest on.
//
// Rule of the folder: it imports no other part of the repository, and Envoy
// fails closed. Without the processor's word (the dynamic metadata `admitted`)
// no request leaves Envoy, whatever else goes wrong.
//
// What the processor can count on:
//
//   - It sees every request: one listener, one catch-all route, one ext_proc
//     filter in full duplex in both directions, RBAC right behind it, then the
//     router.
//   - It chooses the upstream: it sets [UpstreamHeader] to a cluster name
//     ([Connection.Cluster]) and clears the route cache. A client's own header
//     of that name is removed before anything reads it, as are all x-envoy-*
//     headers, which could otherwise ask for retries or timeouts.
//   - It admits: it sets [MetadataNamespace].[AdmittedKey] to true in the dynamic
//     metadata of its reply to the request headers.
//   - An ImmediateResponse whose content-type is application/json goes out
//     byte for byte. Every other local reply is put into BigQuery's error shape,
//     except for gRPC requests.
package envoy
