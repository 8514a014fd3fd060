package inbox

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/dialring/dialring/internal/reread"
)

// Keys are the operator's keys for what stored messages carry. They are read from a
// file, and again when it has changed. Without a file nothing is sealed, and what others
// have sealed cannot be opened. All methods may be called concurrently.
type Keys struct {
	file string
	log  *slog.Logger
	cur  atomic.Pointer[keySet]
}

// keySet is what a file says.
type keySet struct {
	text       []byte
	seal       *sealKey            // nil: nothing is sealed
	keys       map[string]*sealKey // by reference
	lost       map[string]bool     // ids
	messageIDs []byte              // "": keys of pushes are hashed without a key
	refuse     bool                // what is not sealed
	replaced   chan struct{}       // closed when another set has taken its place
}

// sealKey is one key.
type sealKey struct {
	// ref is the key's id and six bytes that tell keys of one id apart: a node whose key
	// is another one under the same name must not take what it cannot open for forged.
	ref  string
	aead *xaes
}

const (
	maxKeys     = 16
	maxKeyID    = 32
	maxKeysFile = 64 << 10
	keyCheck    = 6
	refMark     = "~" // in no id of a key

	actInboxKeys = "inbox_keys" // in the audit
)

// keysFile is the form of the file.
type keysFile struct {
	Seal           string    `json:"seal"`
	Keys           []keyLine `json:"keys"`
	MessageIDKey   string    `json:"message_id_key"`
	RefuseUnsealed bool      `json:"refuse_unsealed"`
}

type keyLine struct {
	ID   string `json:"id"`
	Key  string `json:"key"`
	Lost bool   `json:"lost"`
}

// LoadKeys reads the keys in a file; "" is no file.
func LoadKeys(file string, log *slog.Logger) (*Keys, error) {
	k := &Keys{file: file, log: log}
	k.cur.Store(&keySet{replaced: make(chan struct{})})
	if file == "" {
		return k, nil
	}
	if _, err := k.load(); err != nil {
		return nil, fmt.Errorf("DIALRING_INBOX_KEYS_FILE: %w", err)
	}
	return k, nil
}

// load reads the file, and tells whether it has changed.
func (k *Keys) load() (bool, error) {
	text, err := reread.Read(k.file, maxKeysFile)
	if err != nil {
		return false, err
	}
	was := k.cur.Load()
	if bytes.Equal(was.text, text) {
		return false, nil
	}
	set, err := parseKeys(text)
	if err != nil {
		return false, err
	}
	k.cur.Store(set)
	close(was.replaced)
	return true, nil
}

// Run looks for a new file until ctx ends. One that cannot be used changes nothing.
func (k *Keys) Run(ctx context.Context) {
	if k.file == "" {
		return
	}
	k.say("stored payloads: the keys are read")
	reread.Watch(ctx, func() error {
		changed, err := k.load()
		if changed {
			k.say("stored payloads: new keys are read")
			reread.Audit(k.log, actInboxKeys, k.file, nil)
		}
		return err
	}, func(err error, nth int) {
		if reread.Say(nth) {
			k.log.Error("the file of the keys for stored payloads cannot be used; going on with the last ones", "event", "inbox_keys_unread", "error", err)
			reread.Audit(k.log, actInboxKeys, k.file, err)
		}
	})
}

func (k *Keys) say(what string) {
	seals, opens := k.Refs()
	k.log.Info(what, "event", "inbox_keys", "seals", seals, "opens", opens, "refuse_unsealed", k.cur.Load().refuse)
}

// Refs tells by which key payloads are sealed now, "" if by none, and which ones open
// them, in order: each as <id>~<check>, which is equal on nodes that have the same key.
func (k *Keys) Refs() (seals string, opens []string) {
	set := k.cur.Load()
	for ref := range set.keys {
		opens = append(opens, ref)
	}
	slices.Sort(opens)
	if set.seal != nil {
		seals = set.seal.ref
	}
	return seals, opens
}

// Key makes of a service's idempotency key, or of a message's own id if it has
// none, what the store compares: keys of two users, and ids and keys, never meet. With
// keys for payloads a service's key is hashed with a key of its own, since whoever reads
// the store could otherwise find it by trying. That one does not change when the others
// do: a repeat is known all the while. A message's own id is random, and no secret.
func (k *Keys) Key(user, key, id string) string {
	kind, text := "k", key
	if key == "" {
		kind, text = "i", id
	}
	b := []byte(kind + "\x00" + user + "\x00" + text)
	if mac := k.cur.Load().messageIDs; kind == "k" && mac != nil {
		h := hmac.New(sha256.New, mac)
		h.Write(b)
		return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:15])
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:15])
}

// parseKeys reads a file. Its errors say nothing of a key but its id.
func parseKeys(text []byte) (*keySet, error) {
	if len(text) > maxKeysFile {
		return nil, fmt.Errorf("the file has more than %d bytes", maxKeysFile)
	}
	var f keysFile
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("the file is not the JSON that it should be: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	if len(f.Keys) == 0 || len(f.Keys) > maxKeys {
		return nil, fmt.Errorf("keys has %d entries; it has 1 to %d", len(f.Keys), maxKeys)
	}
	set := &keySet{text: text, keys: map[string]*sealKey{}, lost: map[string]bool{}, refuse: f.RefuseUnsealed, replaced: make(chan struct{})}
	ids, secrets := map[string]bool{}, map[string]string{}
	for i, l := range f.Keys {
		switch {
		case !validKeyID(l.ID):
			return nil, fmt.Errorf("the id of key %d must be 1 to %d of A-Z a-z 0-9 . _ -", i+1, maxKeyID)
		case ids[l.ID]:
			return nil, fmt.Errorf("key %s stands twice", l.ID)
		case l.Lost && l.Key != "":
			return nil, fmt.Errorf("key %s is there, so it is not lost: remove one of the two", l.ID)
		}
		ids[l.ID] = true
		if l.Lost {
			set.lost[l.ID] = true
			continue
		}
		secret, err := parseKey(l.Key)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", l.ID, err)
		}
		if other, ok := secrets[string(secret)]; ok {
			return nil, fmt.Errorf("keys %s and %s are one and the same; make a new one: openssl rand -base64 32", other, l.ID)
		}
		secrets[string(secret)] = l.ID
		key, err := newSealKey(l.ID, secret)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", l.ID, err)
		}
		set.keys[key.ref] = key
		if f.Seal == l.ID {
			set.seal = key
		}
	}
	switch {
	case f.Seal != "" && set.seal == nil:
		return nil, errors.New("seal names no key that is there")
	case f.RefuseUnsealed && set.seal == nil:
		return nil, errors.New("refuse_unsealed without seal would refuse what this node itself stores")
	}
	mac, err := parseKey(f.MessageIDKey)
	if err != nil {
		return nil, fmt.Errorf("message_id_key: %w", err)
	}
	if other, ok := secrets[string(mac)]; ok {
		return nil, fmt.Errorf("message_id_key and key %s are one and the same; make a new one: openssl rand -base64 32", other)
	}
	set.messageIDs = mac
	return set, nil
}

func validKeyID(s string) bool {
	if s == "" || len(s) > maxKeyID {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

var errKey = errors.New("it must be 32 random bytes in base64, such as from: openssl rand -base64 32")

func parseKey(s string) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != 32 || base64.StdEncoding.EncodeToString(b) != s { // the decoder passes over line ends
		return nil, errKey
	}
	if bytes.Count(b, b[:1]) == len(b) { // of an example
		return nil, errKey
	}
	return b, nil
}

// newSealKey derives from a secret what seals and what tells keys apart.
func newSealKey(id string, secret []byte) (*sealKey, error) {
	seal, err := hkdf.Key(sha256.New, secret, nil, "dialring stored payload", xaesKey)
	if err != nil {
		return nil, err
	}
	check, err := hkdf.Key(sha256.New, secret, nil, "dialring key check", keyCheck)
	if err != nil {
		return nil, err
	}
	x, err := newXAES(seal)
	return &sealKey{ref: id + refMark + hex.EncodeToString(check), aead: x}, err
}
