package policy

type source struct {
	name  string
	files map[string][]byte
}

func (s *source) digest() string { return "" }

func (e *Engine) read() (*source, error) { return &source{}, nil }
