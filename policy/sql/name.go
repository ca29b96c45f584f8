package sql

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Name is a table, dataset or project as BigQuery compares it.
type Name struct {
	Project, Dataset string
	// Table is empty for a dataset. It ends with * for a wildcard, and has no decorator any more.
	Table string
	// InformationSchema is the view in upper case where the name is one of an INFORMATION_SCHEMA; Table is then empty.
	InformationSchema string
	Region            string // of a region-qualified INFORMATION_SCHEMA, lower case ("region-eu")
	Partition         string // the $ decorator's text
	TimeTravel        bool   // an @ decorator stood there
}

// String returns the name in dots.
func (n Name) String() string {
	parts := make([]string, 0, 4)
	for _, p := range []string{n.Project, n.Dataset, n.Region} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	switch {
	case n.InformationSchema != "":
		parts = append(parts, "INFORMATION_SCHEMA", n.InformationSchema)
	case n.Table != "":
		parts = append(parts, n.Table)
	}
	return strings.Join(parts, ".")
}

// Fold returns a key under which names that BigQuery might take for one another
// are equal. Dataset and table names are case-sensitive by default, but a dataset
// can be made case-insensitive (its is_case_insensitive option), which no name
// shows: who forbids a name must compare by Fold, who allows one by the name itself.
func (n Name) Fold() string { return strings.ToLower(n.String()) }

// NameError says why a name was refused. Code is a [Problem]'s.
type NameError struct{ Code, Message string }

func (e *NameError) Error() string { return e.Message }

// The most bytes that BigQuery takes in a dataset's or table's id.
const maxName = 1024

// Canonical returns the canonical form of a table's name as any door of BigQuery
// may spell it: in SQL with or without backticks, with dots or the legacy colon,
// with decorators, or as the fields of a REST reference joined by dots. What the
// name leaves out comes from project and dataset, which may be empty. Escape
// sequences, project numbers and characters that BigQuery refuses are errors (a *[NameError]).
func Canonical(name, project, dataset string) (Name, error) {
	return canonical(name, project, dataset, false)
}

// CanonicalDataset is [Canonical] for a dataset's name.
func CanonicalDataset(name, project string) (Name, error) {
	return canonical(name, project, "", true)
}

// CanonicalReference returns the canonical form of a REST reference, whose
// fields are taken as they are: no field may hold another's part. An empty table
// means the dataset, an empty dataset the project.
func CanonicalReference(project, dataset, table string) (Name, error) {
	n := Name{}
	var err error
	if n.Project, err = canonicalProject(project); err != nil {
		return Name{}, err
	}
	if dataset == "" {
		if table != "" {
			return Name{}, nameErrorf("invalid_name", "a table's reference has no dataset")
		}
		return n, nil
	}
	if err := checkDataset(dataset); err != nil {
		return Name{}, err
	}
	if table == "" {
		n.Dataset = dataset
		return n, nil
	}
	return finishName(n, dataset, table)
}

func nameErrorf(code, format string, args ...any) error {
	return &NameError{Code: code, Message: fmt.Sprintf(format, args...)}
}

func canonical(name, project, dataset string, isDataset bool) (Name, error) {
	parts, err := splitBackticks(name)
	if err != nil {
		return Name{}, err
	}
	return resolve(parts, project, dataset, isDataset)
}

// splitBackticks splits a name at dots and takes its backticks away.
func splitBackticks(name string) ([]string, error) {
	if !strings.Contains(name, "`") {
		return []string{name}, nil
	}
	if strings.Contains(name, `\`) {
		return nil, nameErrorf("invalid_name", "the name holds an escape sequence")
	}
	var parts []string
	for {
		var part string
		if strings.HasPrefix(name, "`") {
			end := strings.IndexByte(name[1:], '`')
			if end < 0 {
				return nil, nameErrorf("invalid_name", "the name has an unclosed backtick")
			}
			part, name = name[1:1+end], name[end+2:]
			if name != "" && name[0] != '.' && name[0] != ':' {
				return nil, nameErrorf("invalid_name", "the name goes on after a backtick")
			}
		} else {
			end := strings.IndexAny(name, ".`")
			switch {
			case end >= 0 && name[end] == '`':
				return nil, nameErrorf("invalid_name", "a backtick stands inside of a name")
			case end < 0:
				part, name = name, ""
			default:
				part, name = name[:end], name[end:]
			}
		}
		parts = append(parts, part)
		if name == "" {
			return parts, nil
		}
		name = name[1:]
	}
}

// resolve makes a name of a path's identifiers, each of which may hold dots.
func resolve(idents []string, project, dataset string, isDataset bool) (Name, error) {
	joined := strings.Join(idents, ".")
	if joined == "" {
		return Name{}, nameErrorf("invalid_name", "the name is empty")
	}
	var domain string
	rest := joined
	colonProject := false
	if head, tail, ok := strings.Cut(joined, ":"); ok {
		if strings.Contains(head, ".") {
			domain, rest = head, tail // example.com:project.dataset.table
			if h, t, ok := strings.Cut(rest, ":"); ok {
				rest, colonProject = h+"."+t, true // example.com:project:dataset.table
				if strings.Contains(h, ".") {
					return Name{}, nameErrorf("invalid_name", "the name has a colon out of place")
				}
			}
		} else {
			rest, colonProject = head+"."+tail, true // project:dataset.table
		}
		if strings.Contains(rest, ":") {
			return Name{}, nameErrorf("invalid_name", "the name has too many colons")
		}
	}
	parts := strings.Split(rest, ".")
	for _, p := range parts {
		if p == "" {
			return Name{}, nameErrorf("invalid_name", "a part of the name is empty")
		}
	}
	n := Name{}
	take := func() error { // the project, when the name has one
		var err error
		p := parts[0]
		if domain != "" {
			p = domain + ":" + p
		}
		if n.Project, err = canonicalProject(p); err != nil {
			return err
		}
		parts = parts[1:]
		return nil
	}
	own := func() error {
		if project == "" {
			return nameErrorf("invalid_name", "the name has no project, and there is no default")
		}
		var err error
		n.Project, err = canonicalProject(project)
		return err
	}
	explicit := colonProject || domain != ""

	if isDataset {
		switch {
		case len(parts) == 2, explicit && len(parts) > 1:
			if err := take(); err != nil {
				return Name{}, err
			}
		case len(parts) == 1 && !explicit:
			if err := own(); err != nil {
				return Name{}, err
			}
		}
		if len(parts) != 1 || n.Project == "" {
			return Name{}, nameErrorf("invalid_name", "a dataset's name has one part and perhaps a project")
		}
		if err := checkDataset(parts[0]); err != nil {
			return Name{}, err
		}
		n.Dataset = parts[0]
		return n, nil
	}

	// An INFORMATION_SCHEMA: [project.][dataset or region.]INFORMATION_SCHEMA.VIEW
	for i, p := range parts {
		if !strings.EqualFold(p, "INFORMATION_SCHEMA") {
			continue
		}
		view := parts[i+1:]
		if len(view) != 1 {
			return Name{}, nameErrorf("invalid_name", "INFORMATION_SCHEMA stands where a view of it should follow")
		}
		if i > 2 {
			return Name{}, nameErrorf("invalid_name", "the name has too many parts")
		}
		n.InformationSchema = strings.ToUpper(view[0])
		if !ascii(n.InformationSchema) {
			return Name{}, nameErrorf("invalid_name", "an INFORMATION_SCHEMA view has a character that BigQuery refuses")
		}
		before := parts[:i]
		if v, at, ok := cutDecorator(n.InformationSchema); ok {
			n.InformationSchema, n.TimeTravel = v, at
		}
		var qualifier string
		switch {
		case len(before) == 2 || explicit && len(before) == 1:
			parts = before
			if err := take(); err != nil {
				return Name{}, err
			}
			if len(parts) == 1 {
				qualifier = parts[0]
			}
		default:
			if err := own(); err != nil {
				return Name{}, err
			}
			if len(before) == 1 {
				qualifier = before[0]
			}
		}
		switch {
		case qualifier == "":
			if !projectViews[n.InformationSchema] {
				n.Dataset = dataset
			}
		case len(qualifier) > 7 && strings.EqualFold(qualifier[:7], "region-"):
			if !ascii(qualifier) {
				return Name{}, nameErrorf("invalid_name", "a region has a character that BigQuery refuses")
			}
			n.Region = strings.ToLower(qualifier)
		default:
			if err := checkDataset(qualifier); err != nil {
				return Name{}, err
			}
			n.Dataset = qualifier
		}
		return n, nil
	}

	switch {
	case len(parts) == 3, explicit && len(parts) == 2 && domain == "":
		if err := take(); err != nil {
			return Name{}, err
		}
	case len(parts) == 2 && !explicit:
		if err := own(); err != nil {
			return Name{}, err
		}
	case len(parts) == 1 && !explicit:
		if dataset == "" {
			return Name{}, nameErrorf("no_default_dataset", "the name has no dataset, and the job has no default dataset")
		}
		if err := own(); err != nil {
			return Name{}, err
		}
		parts = []string{dataset, parts[0]}
	}
	if len(parts) != 2 || n.Project == "" {
		return Name{}, nameErrorf("invalid_name", "a table's name has a dataset, a table and perhaps a project, no more and no less")
	}
	if err := checkDataset(parts[0]); err != nil {
		return Name{}, err
	}
	return finishName(n, parts[0], parts[1])
}

// projectViews are the INFORMATION_SCHEMA views that belong to a project rather
// than to a dataset when nothing stands before them.
var projectViews = map[string]bool{"SCHEMATA": true, "SCHEMATA_OPTIONS": true, "SCHEMATA_LINKS": true, "SCHEMATA_REPLICAS": true, "OBJECT_PRIVILEGES": true}

func init() {
	for _, v := range []string{"JOBS", "JOBS_TIMELINE", "SESSIONS", "RESERVATIONS", "RESERVATION_CHANGES", "RESERVATIONS_TIMELINE", "CAPACITY_COMMITMENTS",
		"CAPACITY_COMMITMENT_CHANGES", "ASSIGNMENTS", "ASSIGNMENT_CHANGES", "TABLE_STORAGE", "TABLE_STORAGE_TIMELINE", "TABLE_STORAGE_USAGE_TIMELINE",
		"STREAMING_TIMELINE", "WRITE_API_TIMELINE", "RECOMMENDATIONS", "INSIGHTS", "BI_CAPACITIES", "BI_CAPACITY_CHANGES", "EFFECTIVE_PROJECT_OPTIONS",
		"PROJECT_OPTIONS", "ORGANIZATION_OPTIONS", "ORGANIZATION_OPTIONS_CHANGES", "PROJECT_OPTIONS_CHANGES", "SHARED_DATASET_USAGE"} {
		for _, suffix := range []string{"", "_BY_USER", "_BY_PROJECT", "_BY_FOLDER", "_BY_ORGANIZATION"} {
			projectViews[v+suffix] = true
		}
	}
}

// finishName checks a table's id, taking its decorators away.
func finishName(n Name, dataset, table string) (Name, error) {
	n.Dataset = dataset
	if strings.EqualFold(dataset, "INFORMATION_SCHEMA") { // as a default dataset, or in a REST reference
		n.Dataset, n.InformationSchema = "", strings.ToUpper(table)
		if v, at, ok := cutDecorator(n.InformationSchema); ok {
			n.InformationSchema, n.TimeTravel = v, at
		}
		if n.InformationSchema == "" || !ascii(n.InformationSchema) {
			return Name{}, nameErrorf("invalid_name", "an INFORMATION_SCHEMA view has a character that BigQuery refuses")
		}
		return n, nil
	}
	if t, _, ok := cutDecorator(table); ok {
		n.TimeTravel = true
		table = t
	}
	if t, p, ok := strings.Cut(table, "$"); ok {
		for _, r := range p {
			if r < '0' || r > '9' {
				if p != "__UNPARTITIONED__" && p != "__NULL__" {
					return Name{}, nameErrorf("invalid_name", "the name's $ decorator is no partition")
				}
				break
			}
		}
		table, n.Partition = t, p
		if p == "" {
			return Name{}, nameErrorf("invalid_name", "the name's $ decorator is empty")
		}
	}
	n.Table = table
	body := strings.TrimSuffix(table, "*")
	if table == "" || len(table) > maxName {
		return Name{}, nameErrorf("invalid_name", "a table's name has 1 to 1024 bytes")
	}
	if !utf8.ValidString(body) || !norm.NFC.IsNormalString(body) {
		return Name{}, nameErrorf("invalid_name", "a table's name is not Unicode in its composed form (NFC)")
	}
	for _, r := range body {
		// https://cloud.google.com/bigquery/docs/tables#table_naming: categories L, M, N, Pc, Pd, Zs.
		if !unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.Pc, unicode.Pd, unicode.Zs) {
			return Name{}, nameErrorf("invalid_name", "a table's name has a character that BigQuery refuses")
		}
	}
	return n, nil
}

// cutDecorator cuts an @ decorator off.
func cutDecorator(table string) (string, bool, bool) {
	t, _, ok := strings.Cut(table, "@")
	return t, ok, ok
}

// checkDataset checks a dataset's id
// (https://cloud.google.com/bigquery/docs/datasets#dataset-naming).
func checkDataset(d string) error {
	if d == "" || len(d) > maxName {
		return nameErrorf("invalid_name", "a dataset's name has 1 to 1024 bytes")
	}
	for i := 0; i < len(d); i++ {
		if c := d[i]; c != '_' && !isDigit(c) && !isLetter(c) {
			return nameErrorf("invalid_name", "a dataset's name has a character that BigQuery refuses")
		}
	}
	return nil
}

// canonicalProject checks a project's id and folds it: project ids are lower case.
// A project's number is a second name for it that nobody here can resolve, so it is refused.
func canonicalProject(p string) (string, error) {
	domain, id, scoped := strings.Cut(p, ":")
	if !scoped {
		id = p
	}
	if id == "" || len(p) > 256 {
		return "", nameErrorf("invalid_name", "a project's id is empty or too long")
	}
	digits := true
	for i := 0; i < len(id); i++ {
		c := id[i]
		if !isDigit(c) {
			digits = false
			if !isLetter(c) && c != '-' {
				return "", nameErrorf("invalid_name", "a project's id has a character that BigQuery refuses")
			}
		}
	}
	if digits {
		return "", nameErrorf("project_number", "a project is named by its number: name it by its id")
	}
	if id[0] == '-' || isDigit(id[0]) {
		return "", nameErrorf("invalid_name", "a project's id begins with a letter")
	}
	if scoped {
		for i := 0; i < len(domain); i++ {
			if c := domain[i]; !isDigit(c) && !isLetter(c) && c != '-' && c != '.' {
				return "", nameErrorf("invalid_name", "a project's domain has a character that BigQuery refuses")
			}
		}
		if domain == "" {
			return "", nameErrorf("invalid_name", "a project's domain is empty")
		}
	}
	return strings.ToLower(p), nil
}

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func ascii(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf || s[i] < ' ' {
			return false
		}
	}
	return true
}
