package auth

// Code says why a request was refused. Codes are stable: they stand in records,
// metrics and answers.
type Code string

// The codes.
const (
	TokenMissing        Code = "token_missing"
	TokenMalformed      Code = "token_malformed"
	TokenTooLarge       Code = "token_too_large"
	TokenTypeRefused    Code = "token_type_refused" // a logout, DPoP or key-bound token
	TokenExpired        Code = "token_expired"
	TokenNotYetValid    Code = "token_not_yet_valid"
	IssuerUnknown       Code = "issuer_unknown"
	IssuerUnavailable   Code = "issuer_unavailable"
	AudienceMismatch    Code = "audience_mismatch"
	AlgorithmRefused    Code = "algorithm_refused"
	SignatureInvalid    Code = "signature_invalid"
	KeyUnknown          Code = "key_unknown"
	ClaimMissing        Code = "claim_missing"
	ClaimInvalid        Code = "claim_invalid"
	TrustDomainMismatch Code = "trust_domain_mismatch"
	ActorChainInvalid   Code = "actor_chain_invalid"
	SchemeRefused       Code = "scheme_refused"
	CredentialDuplicate Code = "credential_duplicate"
	CredentialInQuery   Code = "credential_in_query"
	CredentialInHeader  Code = "credential_in_header"
	Revoked             Code = "revoked"
	TokenNotExchanged   Code = "token_not_exchanged" // a gateway token where an issuer's is wanted
)

// Error is a refusal. Message is for a human and holds no part of the token.
type Error struct {
	Code    Code
	Message string
	// Unavailable: the fault is not the token's, and the same request may pass
	// later (503 rather than 401).
	Unavailable bool
}

func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

func refuse(code Code, message string) *Error { return &Error{Code: code, Message: message} }
