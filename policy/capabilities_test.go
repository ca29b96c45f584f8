package policy

import (
	"slices"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

func TestOffered(t *testing.T) {
	for _, name := range offered {
		i := slices.IndexFunc(ast.Builtins, func(b *ast.Builtin) bool { return b.Name == name })
		if i < 0 {
			t.Errorf("%s is no builtin", name)
			continue
		}
		// What OPA itself says can differ from one call to the next.
		if ast.Builtins[i].IsNondeterministic() {
			t.Errorf("%s is not deterministic", name)
		}
	}
	if n := len(capabilities().Builtins); n != len(offered) {
		t.Errorf("%d builtins are offered, %d listed", n, len(offered))
	}
	if net := capabilities().AllowNet; net == nil || len(net) != 0 {
		t.Errorf("allow_net is %v: nil would allow every host", net)
	}
}
