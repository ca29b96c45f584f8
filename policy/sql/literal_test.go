package sql

import "testing"

func TestUnquote(t *testing.T) {
	for _, c := range []struct{ image, want string }{
		{`'a'`, "a"}, {`"a'b"`, "a'b"}, {`'''a'b'''`, "a'b"}, {`""`, ""}, {`""""""`, ""}, {`r'\n'`, `\n`}, {`Rb"""\x"""`, `\x`},
		{`'\a\b\f\n\r\t\v\\\?\'\"\` + "`" + `'`, "\a\b\f\n\r\t\v\\?'\"`"}, {`'\x41\X42\103\u0044\U00000045'`, "ABCDE"}, {`'\u00e9𝄞'`, "é𝄞"},
		{"'''a\r\nb'''", "a\nb"}, {`b'\xff'`, "\xff"},
	} {
		if got, ok := unquote(c.image); !ok || got != c.want {
			t.Errorf("%s: %q, %v, want %q", c.image, got, ok, c.want)
		}
	}
	for _, image := range []string{``, `'`, `x'a'`, `'\q'`, `'\x4'`, `'\u12'`, `'\8'`, `'\777'`, `'a\'`} {
		if got, ok := unquote(image); ok {
			t.Errorf("%s: %q", image, got)
		}
	}
}
