package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Scopes of API keys: what a key may do.
const (
	ScopePush  = "push"  // push to users and groups, broadcast
	ScopeRead  = "read"  // look at users, presence, groups, the ring, plans
	ScopeAdmin = "admin" // end sessions, revoke tokens, change groups, drain nodes
)

// Scopes are all of them.
var Scopes = []string{ScopePush, ScopeRead, ScopeAdmin}

// Bounds of a file of API keys.
const (
	MaxAPIKeys     = 1000
	MaxKeyName     = 64
	MaxKeyPrefixes = 100
	MaxKeyFile     = 1 << 20 // bytes
)

// KeyEntry is one API key in a file of them: who has it and what it may do, and of the key
// itself the digest only.
type KeyEntry struct {
	Name   string   `json:"name"`
	SHA256 string   `json:"sha256"` // of the key, in hexadecimal
	Scopes []string `json:"scopes"`
	// Users are beginnings of the ids of the users, and of the names of the groups, that the
	// key reaches; without any it reaches all of them, and may do what is about all.
	Users []string `json:"users,omitempty"`
}

// Digest is what a KeyEntry has of a key.
func Digest(key string) string {
	d := sha256.Sum256([]byte(key))
	return hex.EncodeToString(d[:])
}

// nothing is the digest of a key that somebody forgot to put in.
var nothing = Digest("")

// CheckKeyName reports why s is no name of an API key: 1 to 64 of A-Z a-z 0-9 . _ -
func CheckKeyName(s string) error {
	switch {
	case s == "":
		return errors.New("the name is empty")
	case len(s) > MaxKeyName:
		return fmt.Errorf("the name has %d characters; at most %d are allowed", len(s), MaxKeyName)
	case CheckDevice(s) != nil: // the same characters
		return fmt.Errorf("the name %q must consist of A-Z a-z 0-9 . _ -", s)
	}
	return nil
}

// CheckScopes reports why scopes are not what a key may do.
func CheckScopes(scopes []string) error {
	if len(scopes) == 0 {
		return fmt.Errorf("scopes are missing; they are some of %s", strings.Join(Scopes, ", "))
	}
	for i, s := range scopes {
		if !slices.Contains(Scopes, s) {
			return fmt.Errorf("the scope %q is none of %s", s, strings.Join(Scopes, ", "))
		}
		if slices.Contains(scopes[:i], s) {
			return fmt.Errorf("the scope %q is there twice", s)
		}
	}
	return nil
}

// CheckKeyPrefixes reports why users are not beginnings of ids.
func CheckKeyPrefixes(users []string) error {
	if len(users) > MaxKeyPrefixes {
		return fmt.Errorf("users has %d prefixes; at most %d are allowed", len(users), MaxKeyPrefixes)
	}
	for _, u := range users {
		if u == "" {
			return errors.New("users has an empty prefix, which would be everybody: leave users out for that")
		}
		if err := CheckUser(u); err != nil {
			return fmt.Errorf("users: %w", err)
		}
		if strings.HasSuffix(u, "*") {
			return fmt.Errorf("users has %q: a prefix is written without a * behind it", u)
		}
	}
	return nil
}

// check reports what is wrong with an entry, but never shows its digest: who pasted a key
// there would find it in a log.
func (e *KeyEntry) check() error {
	if err := CheckKeyName(e.Name); err != nil {
		return err
	}
	if d, err := hex.DecodeString(e.SHA256); err != nil || len(d) != sha256.Size {
		return errors.New("sha256 must be the SHA-256 of the key, 64 hexadecimal digits; dialring key makes a key and its entry")
	}
	if strings.EqualFold(e.SHA256, nothing) {
		return errors.New("sha256 is the digest of nothing: the key was empty when it was made")
	}
	if err := CheckScopes(e.Scopes); err != nil {
		return err
	}
	return CheckKeyPrefixes(e.Users)
}

// ParseKeyFile reads a file of API keys, {"keys":[…]}, strictly: what it does not know it
// refuses, since a mistyped limit must not be none. Errors name the entry.
func ParseKeyFile(b []byte) ([]KeyEntry, error) {
	if len(b) > MaxKeyFile {
		return nil, fmt.Errorf("the file has more than %d bytes", MaxKeyFile)
	}
	if err := CheckJSON(b); err != nil {
		return nil, err
	}
	var list []json.RawMessage
	if err := members(b, func(name string, v json.RawMessage) error {
		if name != "keys" {
			return fmt.Errorf("%.40q is not known; the file is {\"keys\":[…]}", name)
		}
		if err := json.Unmarshal(v, &list); err != nil || list == nil {
			return errors.New("keys must be a list")
		}
		return nil
	}); err != nil {
		return nil, err
	}
	switch {
	case list == nil:
		return nil, errors.New(`keys is missing; the file is {"keys":[…]}`)
	case len(list) > MaxAPIKeys:
		return nil, fmt.Errorf("the file has %d keys; at most %d are allowed", len(list), MaxAPIKeys)
	}
	entries := make([]KeyEntry, len(list))
	names, digests := map[string]int{}, map[string]int{}
	for i, raw := range list {
		e := &entries[i]
		err := e.parse(raw)
		if err == nil {
			err = e.check()
		}
		if err == nil {
			e.SHA256 = strings.ToLower(e.SHA256)
			if j, there := names[e.Name]; there {
				err = fmt.Errorf("entry %d has the same name", j+1)
			} else if j, there := digests[e.SHA256]; there {
				err = fmt.Errorf("entry %d (%q) has the same sha256: a key has one entry", j+1, entries[j].Name)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("entry %d (%.64q): %w", i+1, e.Name, err)
		}
		names[e.Name], digests[e.SHA256] = i, i
	}
	return entries, nil
}

func (e *KeyEntry) parse(raw json.RawMessage) error {
	return members(raw, func(name string, v json.RawMessage) error {
		var err error
		switch name {
		case "name":
			err = text(v, &e.Name)
		case "sha256":
			err = text(v, &e.SHA256)
		case "scopes":
			err = texts(v, &e.Scopes)
		case "users":
			if err = texts(v, &e.Users); err == nil && len(e.Users) == 0 {
				return errors.New("users is empty, which would be nobody: leave it out for all users, or the entry for none")
			}
		default:
			return fmt.Errorf("%.40q is not known; an entry has name, sha256, scopes and users", name)
		}
		if err != nil {
			return fmt.Errorf("%s %w", name, err)
		}
		return nil
	})
}

// members calls f for each member of an object, and refuses one that is there twice:
// encoding/json would take the last, and names in any case.
func members(b []byte, f func(name string, v json.RawMessage) error) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("it must be an object, {…}")
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		name, _ := t.(string)
		if seen[name] {
			return fmt.Errorf("%.40q is there twice", name)
		}
		seen[name] = true
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return err
		}
		if err := f(name, v); err != nil {
			return err
		}
	}
	return nil
}

// text reads a value that must be text; null is none.
func text(v json.RawMessage, to *string) error {
	if len(v) == 0 || v[0] != '"' || json.Unmarshal(v, to) != nil {
		return errors.New("must be text")
	}
	return nil
}

// texts reads a list of texts.
func texts(v json.RawMessage, to *[]string) error {
	var list []json.RawMessage
	if err := json.Unmarshal(v, &list); err != nil || list == nil {
		return errors.New("must be a list of texts")
	}
	*to = make([]string, len(list))
	for i := range list {
		if err := text(list[i], &(*to)[i]); err != nil {
			return errors.New("must be a list of texts")
		}
	}
	return nil
}
