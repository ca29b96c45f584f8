package auth

import "strings"

// A profile reads what an issuer's verified claims prove into id. The subject and
// the groups are there already.
type profile func(is *issuer, c claims, id *Identity) *Error

var profiles = map[string]profile{
	ProfileGitHub:     github,
	ProfileGitLab:     gitlab,
	ProfileKubernetes: kubernetes,
	ProfileGoogle:     google,
	ProfileSPIFFE:     spiffe,
	ProfileGeneric:    generic,
}

// mapped are the fields that a generic issuer's claims may fill.
var mapped = map[string]func(*Identity) *string{
	"email":           func(id *Identity) *string { return &id.Principal.Email },
	"pipeline":        func(id *Identity) *string { return &id.Provenance.Pipeline },
	"repository":      func(id *Identity) *string { return &id.Provenance.Repository },
	"ref":             func(id *Identity) *string { return &id.Provenance.Ref },
	"commit":          func(id *Identity) *string { return &id.Provenance.Commit },
	"workflow":        func(id *Identity) *string { return &id.Provenance.Workflow },
	"run":             func(id *Identity) *string { return &id.Provenance.Run },
	"actor":           func(id *Identity) *string { return &id.Provenance.Actor },
	"environment":     func(id *Identity) *string { return &id.Provenance.Environment },
	"namespace":       func(id *Identity) *string { return &id.Provenance.Namespace },
	"pod":             func(id *Identity) *string { return &id.Provenance.Pod },
	"service_account": func(id *Identity) *string { return &id.Provenance.ServiceAccount },
	"node":            func(id *Identity) *string { return &id.Provenance.Node },
}

// field is one claim of a profile and where it goes.
type field struct {
	claim    string
	required bool
	to       *string
}

func read(c claims, fields []field) *Error {
	for _, f := range fields {
		s, err := c.text(f.claim)
		if err == nil && f.required {
			s, err = c.required(f.claim)
		}
		if err != nil {
			return err
		}
		*f.to = s
	}
	return nil
}

// github reads https://docs.github.com/en/actions/reference/security/oidc. The run
// keeps its id when it is attempted again, and Provenance.Run tells the attempts
// apart.
func github(_ *issuer, c claims, id *Identity) *Error {
	p := &id.Provenance
	var attempt string
	if err := read(c, []field{
		{"repository", true, &p.Repository},
		{"run_id", true, &id.Run},
		{"run_attempt", false, &attempt},
		{"ref", false, &p.Ref},
		{"sha", false, &p.Commit},
		{"workflow", false, &p.Pipeline},
		{"workflow_ref", false, &p.Workflow},
		{"actor", false, &p.Actor},
		{"environment", false, &p.Environment},
	}); err != nil {
		return err
	}
	p.Run = join(id.Run, attempt)
	return nil
}

// gitlab reads https://docs.gitlab.com/ci/secrets/id_token_authentication/. The run
// is the pipeline; Provenance.Run names the job in it.
func gitlab(_ *issuer, c claims, id *Identity) *Error {
	p := &id.Provenance
	var job string
	if err := read(c, []field{
		{"project_path", true, &p.Repository},
		{"pipeline_id", true, &id.Run},
		{"job_id", false, &job},
		{"ref_path", false, &p.Ref}, // refs/heads/main; ref has no kind in it
		{"sha", false, &p.Commit},
		{"ci_config_ref_uri", false, &p.Workflow},
		{"user_login", false, &p.Actor},
		{"environment", false, &p.Environment},
		{"user_email", false, &id.Principal.Email},
	}); err != nil {
		return err
	}
	if p.Ref == "" {
		if err := read(c, []field{{"ref", false, &p.Ref}}); err != nil {
			return err
		}
	}
	p.Pipeline = id.Run
	p.Run = join(id.Run, job)
	return nil
}

func join(run, part string) string {
	if part == "" {
		return run
	}
	return run + "/" + part
}

// kubernetes reads the private claims of a bound service account token
// (https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/).
// A token that is bound to no pod proves no run.
func kubernetes(_ *issuer, c claims, id *Identity) *Error {
	p := &id.Provenance
	if err := read(c, []field{
		{"kubernetes.io.namespace", true, &p.Namespace},
		{"kubernetes.io.serviceaccount.name", true, &p.ServiceAccount},
		{"kubernetes.io.pod.name", false, &p.Pod},
		{"kubernetes.io.pod.uid", false, &id.Run},
		{"kubernetes.io.node.name", false, &p.Node},
	}); err != nil {
		return err
	}
	if id.Principal.Subject != "system:serviceaccount:"+p.Namespace+":"+p.ServiceAccount {
		return refuse(ClaimInvalid, "claims sub and kubernetes.io do not name the same service account")
	}
	if p.Pod != "" && id.Run == "" {
		return refuse(ClaimMissing, "the token has no claim kubernetes.io.pod.uid")
	}
	p.Run = id.Run
	return nil
}

// google reads https://developers.google.com/identity/openid-connect/reference.
func google(_ *issuer, c claims, id *Identity) *Error {
	if err := verifiedEmail(c, id); err != nil {
		return err
	}
	if strings.HasSuffix(id.Principal.Email, ".gserviceaccount.com") {
		id.Provenance.ServiceAccount = id.Principal.Email
	}
	return nil
}

// verifiedEmail takes the address only where the issuer says that it is verified:
// else its holder may have made it up.
func verifiedEmail(c claims, id *Identity) *Error {
	switch c["email_verified"] {
	case true, "true":
	default:
		return nil
	}
	var err *Error
	id.Principal.Email, err = c.text("email")
	return err
}

// spiffe reads a JWT-SVID
// (https://github.com/spiffe/spiffe/blob/main/standards/JWT-SVID.md).
func spiffe(is *issuer, _ claims, id *Identity) *Error {
	domain, path, ok := splitSPIFFE(id.Principal.Subject)
	switch {
	case !ok:
		return refuse(ClaimInvalid, "claim sub is no SPIFFE ID: want spiffe://trust-domain/path")
	case domain != is.TrustDomain:
		return refuse(TrustDomainMismatch, "the token is of another trust domain than "+is.TrustDomain)
	case path == "":
		return refuse(ClaimInvalid, "claim sub names a trust domain, no workload in it")
	}
	id.Provenance.SPIFFE = id.Principal.Subject
	return nil
}

// splitSPIFFE takes a SPIFFE ID apart
// (https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md, section 2).
func splitSPIFFE(s string) (domain, path string, ok bool) {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return "", "", false
	}
	domain, path, slash := strings.Cut(rest, "/")
	if !validTrustDomain(domain) {
		return "", "", false
	}
	if !slash {
		return domain, "", true
	}
	for _, segment := range strings.Split(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.Trim(segment, idChars+"ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			return "", "", false
		}
	}
	return domain, path, true
}

const idChars = "abcdefghijklmnopqrstuvwxyz0123456789.-_"

func validTrustDomain(s string) bool {
	return s != "" && len(s) <= 255 && strings.Trim(s, idChars) == ""
}

// generic reads what the configuration maps. The address is taken unmapped only
// where it is verified.
func generic(is *issuer, c claims, id *Identity) *Error {
	if is.Claims["email"] == "" {
		if err := verifiedEmail(c, id); err != nil {
			return err
		}
	}
	for name, claim := range is.Claims {
		s, err := c.text(claim)
		if err != nil {
			return err
		}
		*mapped[name](id) = s
	}
	id.Run = id.Provenance.Run
	return nil
}
