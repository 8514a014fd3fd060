package config

import (
	"io"
	"os"
	"reflect"
	"strings"
)

// fileSuffix stands behind the name of a secret for the name of the file that it is in, as
// containers and systemd hand secrets over. The environment of a process is read by more:
// its children have it, and so has what shows containers and units.
const fileSuffix = "_FILE"

// maxSecretFile bounds a file that is named by mistake.
const maxSecretFile = 64 << 10

// fromFile tells whether a setting may be in a file.
func (f field) fromFile() bool {
	return f.sf.Type == reflect.TypeFor[Secret]() || f.sf.Tag.Get("file") == "true"
}

// readFile sets a setting from the file that the environment names, if it names one. Who
// else may read the file is not looked at: mounted secrets are often 0444, in a directory that
// nobody else gets into, and a warning that is mostly wrong is not read.
func readFile(f field) (bool, error) {
	name := f.name + fileSuffix
	path, ok := os.LookupEnv(name)
	if !ok {
		return false, nil
	}
	if _, both := os.LookupEnv(f.name); both {
		return false, Errorf("%s and %s are both set: unset one of them", f.name, name)
	}
	if path == "" {
		return false, Errorf("%s is empty: give it the path of a file, or unset it", name)
	}
	s, err := readSecret(path)
	if err != nil {
		return false, Errorf("%s: %v", name, err)
	}
	f.v.SetString(s)
	return true, nil
}

// readSecret reads a file without the end of its line. Errors show nothing of what is in it.
func readSecret(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() { // opening a pipe may wait for ever
		return "", Errorf("%s is not a regular file", path)
	}
	r, err := os.Open(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxSecretFile+1))
	switch {
	case err != nil:
		return "", err
	case len(b) > maxSecretFile:
		return "", Errorf("%s has more than %d bytes, which is no secret", path, maxSecretFile)
	}
	s := strings.TrimRight(string(b), "\r\n")
	if s == "" {
		return "", Errorf("%s is empty", path)
	}
	return s, nil
}
