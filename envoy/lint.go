package envoy

// Finding is one breach of the contract.
type Finding struct {
	Path    string // $.static_resources.listeners[0]...
	Line    int    // 1-based, 0 where unknown
	Rule    string
	Message string
}
