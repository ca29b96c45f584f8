package issuer

import "maps"

// Caller is somebody ready-made, with the claims that the real issuer would put
// into a token.
type Caller struct {
	Name   string
	Issuer string // CI, Cluster or Corp
	Claims map[string]any
}

// Callers returns the ready-made callers, with tokens for audience: pipeline,
// agent, analyst, and intruder, who is proven but has no grants.
func Callers(audience string) []Caller {
	return []Caller{
		{Name: "pipeline", Issuer: CI, Claims: Pipeline(audience)},
		{Name: "agent", Issuer: Cluster, Claims: Agent(audience)},
		{Name: "analyst", Issuer: Corp, Claims: Analyst(audience)},
		{Name: "intruder", Issuer: Corp, Claims: Intruder(audience)},
	}
}

// Pipeline is a run of a GitHub Actions workflow, with the claims of
// https://docs.github.com/en/actions/reference/security/oidc.
func Pipeline(audience string) map[string]any {
	return map[string]any{
		"sub":                   "repo:acme/reports:ref:refs/heads/main",
		"aud":                   audience,
		"repository":            "acme/reports",
		"repository_id":         "74",
		"repository_owner":      "acme",
		"repository_owner_id":   "65",
		"repository_visibility": "private",
		"ref":                   "refs/heads/main",
		"ref_type":              "branch",
		"ref_protected":         "true",
		"sha":                   "4f7a1c2be0d94c55a3e8b6f1d27c9e30a81b5d62",
		"workflow":              "nightly",
		"workflow_ref":          "acme/reports/.github/workflows/nightly.yml@refs/heads/main",
		"workflow_sha":          "4f7a1c2be0d94c55a3e8b6f1d27c9e30a81b5d62",
		"job_workflow_ref":      "acme/reports/.github/workflows/nightly.yml@refs/heads/main",
		"event_name":            "schedule",
		"run_id":                "9182736450",
		"run_number":            "128",
		"run_attempt":           "1",
		"runner_environment":    "github-hosted",
		"actor":                 "octavia",
		"actor_id":              "12",
	}
}

// Agent is a pod in a cluster, with the claims of a bound service account token
// (https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/).
func Agent(audience string) map[string]any {
	return map[string]any{
		"sub": "system:serviceaccount:agents:researcher",
		"aud": []string{audience},
		"kubernetes.io": map[string]any{
			"namespace":      "agents",
			"serviceaccount": map[string]any{"name": "researcher", "uid": "0f5c2a3e-6d0e-4a4f-9a59-6b5f3c9e1d11"},
			"pod":            map[string]any{"name": "researcher-7d9c5b6f4-x2x8k", "uid": "5a1f8f0c-55c3-4b0e-8f0e-93a4f6f3f0a2"},
			"node":           map[string]any{"name": "node-3", "uid": "c2b1d7e4-9d5a-4f3d-8a6e-2f1b7c0d9e88"},
		},
	}
}

// Analyst is a human in the group analysts.
func Analyst(audience string) map[string]any {
	return person(audience, "ada", map[string]any{"groups": []string{"analysts", "everyone"}})
}

// Auditor is a human in the group auditors, who reads the evidence.
func Auditor(audience string) Caller {
	return Caller{Name: "auditor", Issuer: Corp, Claims: person(audience, "grace", map[string]any{"groups": []string{"auditors", "everyone"}})}
}

// Intruder is a human whom the issuer knows and nobody granted anything.
func Intruder(audience string) map[string]any {
	return person(audience, "mallory", map[string]any{"groups": []string{"everyone"}})
}

func person(audience, name string, more map[string]any) map[string]any {
	c := map[string]any{
		"sub":            name,
		"aud":            audience,
		"email":          name + "@corp.example",
		"email_verified": true,
	}
	maps.Copy(c, more)
	return c
}
