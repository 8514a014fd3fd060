// Package config reads the programs' settings from the environment. The
// settings themselves are the Config types of locator and wsnode, whose struct
// tags are the one place that names them:
//
//	env:"NAME"      the variable, without the prefix DIALRING_
//	default:"..."   its default
//	desc:"..."      what -h says
//	file:"true"     a text that may hold a password, and so may come from a file as a
//	                Secret may
//
// internal/config turns these into what envconfig wants.
package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/kelseyhightower/envconfig"
)

// Prefix of every setting's name.
const Prefix = "DIALRING_"

// cliPrefix is of the variables of the command line, dialring. It has settings of its own,
// and an operator's shell, or a pod, has them next to those of a program.
const cliPrefix = Prefix + "CLI_"

// Secret is a setting that never shows in a log or an error.
type Secret string

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(hidden)"
}

// LogValue hides the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText hides the secret, in JSON too.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// GoString hides the secret.
func (s Secret) GoString() string { return s.String() }

// Load fills spec, a pointer to a struct of settings, from the environment.
// What is not set there stays as it is: the libraries' New puts the defaults
// in. Every setting that cannot be read and every unknown DIALRING_ name is
// reported, together; those of the command line are not looked at. A setting that is a
// secret may also be in a file, which its name with _FILE behind it names.
func Load(spec any) error {
	v := reflect.ValueOf(spec).Elem()
	var errs []error
	var names []string
	for f := range fields(v) {
		names = append(names, f.name)
		if f.fromFile() {
			names = append(names, f.name+fileSuffix)
			if read, err := readFile(f); err != nil {
				errs = append(errs, err)
				continue
			} else if read {
				continue
			}
		}
		if _, ok := os.LookupEnv(f.name); !ok {
			continue
		}
		if err := process(f); err != nil {
			errs = append(errs, err)
		}
	}
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if strings.HasPrefix(name, Prefix) && !strings.HasPrefix(name, cliPrefix) && !slices.Contains(names, name) {
			errs = append(errs, fmt.Errorf("%s is no setting of this program%s; -h lists them", name, suggest(name, names)))
		}
	}
	return errors.Join(errs...)
}

// process has envconfig read one setting. It is given a struct of that field
// alone, so that one error does not hide the next.
func process(f field) error {
	one := reflect.New(reflect.StructOf([]reflect.StructField{{
		Name: f.sf.Name, Type: f.sf.Type,
		Tag: reflect.StructTag(fmt.Sprintf(`envconfig:"%s"`, f.name)),
	}}))
	if err := envconfig.Process("", one.Interface()); err != nil {
		// envconfig's own error shows the value, which may be a secret.
		return fmt.Errorf("%s cannot be read as %s: see -h for its form", f.name, kind(f.sf.Type))
	}
	f.v.Set(one.Elem().Field(0))
	if k := f.v.Kind(); f.v.IsZero() && f.sf.Tag.Get("default") != "" && f.sf.Tag.Get("default") != "0" && k >= reflect.Int && k <= reflect.Float64 {
		return fmt.Errorf("%s must not be 0; its default is %s", f.name, f.sf.Tag.Get("default"))
	}
	return nil
}

// Defaults sets each field of spec that has its zero value to its default.
func Defaults(spec any) error {
	for f := range fields(reflect.ValueOf(spec).Elem()) {
		def := f.sf.Tag.Get("default")
		if def == "" || !f.v.IsZero() {
			continue
		}
		one := reflect.New(reflect.StructOf([]reflect.StructField{{
			Name: f.sf.Name, Type: f.sf.Type,
			Tag: reflect.StructTag(fmt.Sprintf(`envconfig:"%s_DEFAULT_" default:"%s"`, f.name, def)),
		}}))
		if err := envconfig.Process("", one.Interface()); err != nil {
			return fmt.Errorf("default of %s: %w", f.name, err)
		}
		f.v.Set(one.Elem().Field(0))
	}
	return nil
}

// Usage prints every setting with its default and meaning.
func Usage(w io.Writer, about string, spec any) {
	fmt.Fprintf(w, "%s\n\nSettings are environment variables; there are no flags but -h and -version.\n"+
		"One whose type says \"or a file\" may be in a file instead: add %s to its name, and give the path.\n\n", about, fileSuffix)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tTYPE\tDEFAULT\tMEANING")
	for f := range fields(reflect.ValueOf(spec).Elem()) {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", f.name, f.kind(), f.sf.Tag.Get("default"), f.sf.Tag.Get("desc"))
	}
	_ = t.Flush()
}

type field struct {
	name string // with the prefix
	sf   reflect.StructField
	v    reflect.Value
}

func fields(v reflect.Value) func(yield func(field) bool) {
	return func(yield func(field) bool) {
		for i := range v.NumField() {
			sf := v.Type().Field(i)
			if name := sf.Tag.Get("env"); name != "" && !yield(field{Prefix + name, sf, v.Field(i)}) {
				return
			}
		}
	}
}

func (f field) kind() string {
	if f.fromFile() {
		return kind(f.sf.Type) + " (or a file)"
	}
	return kind(f.sf.Type)
}

func kind(t reflect.Type) string {
	switch {
	case t.String() == "time.Duration":
		return "duration (as 500ms, 20s, 72h)"
	case t.Kind() == reflect.Slice:
		return "comma list"
	case t == reflect.TypeFor[Secret]():
		return "secret"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int || t.Kind() == reflect.Float64:
		return "number"
	}
	return "text"
}

// suggest finds the known name that differs least from a mistyped one.
func suggest(name string, names []string) string {
	best, dist := "", 4
	for _, n := range names {
		if d := distance(name, n); d < dist {
			best, dist = n, d
		}
	}
	if best == "" {
		return ""
	}
	return " (did you mean " + best + "?)"
}

// distance is the Levenshtein distance (Wagner and Fischer's algorithm).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost = 1 + min(diag, row[j], row[j+1])
			}
			diag, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
