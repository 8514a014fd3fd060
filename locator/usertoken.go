package locator

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

// tokenLeeway is how much the clocks of token issuers may differ from ours.
const tokenLeeway = 60 * time.Second

// maxTokenBytes bounds a user token before anything of it is parsed.
const maxTokenBytes = 8 << 10

// userTokens checks the tokens of users. It may be used concurrently.
type userTokens struct {
	parser           *jwt.Parser
	key              jwt.Keyfunc
	audience, issuer string // "": any
}

// errCritical is of a token that wants to be refused by who does not know all that its crit
// names (RFC 7515, 4.1.11), and we know none of it.
var errCritical = errors.New("the token has a crit, and no extension is known here")

// newUserTokens makes a checker of the one way that is configured; nil if none
// is, which only development mode allows. The algorithm follows from the key
// and is never taken from the token. The key set of a JWKS URL is fetched at
// once, and again, until ctx ends, while locates go on.
func newUserTokens(ctx context.Context, c *Config) (*userTokens, error) {
	var methods []string
	u := &userTokens{audience: c.UserJWTAudience, issuer: c.UserJWTIssuer}
	switch {
	case c.UserJWTSecret != "":
		if len(c.UserJWTSecret) < 32 {
			return nil, config.Errorf("DIALRING_USER_JWT_SECRET has %d bytes; HS256 needs at least 32, such as from: openssl rand -base64 32", len(c.UserJWTSecret))
		}
		methods = []string{"HS256"}
		keys := jwt.VerificationKeySet{Keys: []jwt.VerificationKey{[]byte(c.UserJWTSecret)}}
		if p := c.UserJWTSecretPrevious; p != "" {
			if len(p) < 32 {
				return nil, config.Errorf("DIALRING_USER_JWT_SECRET_PREVIOUS has %d bytes; HS256 needs at least 32, as DIALRING_USER_JWT_SECRET", len(p))
			}
			keys.Keys = append(keys.Keys, []byte(p))
		}
		u.key = func(*jwt.Token) (any, error) { return keys, nil }
	case c.UserJWTPublicKeyFile != "":
		key, alg, err := readPublicKey(c.UserJWTPublicKeyFile)
		if err != nil {
			return nil, config.Errorf("DIALRING_USER_JWT_PUBLIC_KEY_FILE: %v", err)
		}
		methods = []string{alg}
		u.key = func(*jwt.Token) (any, error) { return key, nil }
	case c.UserJWKSURL != "":
		set, err := newJWKS(ctx, c)
		if err != nil {
			return nil, config.Errorf("DIALRING_USER_JWKS_URL: %v", err)
		}
		// A JWK fixes its own algorithm; symmetric ones have no place in a
		// public set.
		methods = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
		u.key = set.key
	default:
		return nil, nil
	}
	u.parser = jwt.NewParser(jwt.WithValidMethods(methods), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(tokenLeeway), jwt.WithStrictDecoding())
	return u, nil
}

// caller is a user who locates.
type caller struct {
	user   string
	sendTo []string  // whom it may send to
	issued time.Time // its token was; zero: it does not say
}

// userClaims are what is read of a user token.
type userClaims struct {
	ticket.Claims
	SendTo []string
}

// UnmarshalJSON implements json.Unmarshaler. Names count as they are written (RFC 7519, 4):
// encoding/json alone would take an EXP for exp.
func (c *userClaims) UnmarshalJSON(b []byte) error {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	for name, v := range map[string]any{"sub": &c.Subject, "aud": &c.Audience, "exp": &c.Expires, "nbf": &c.NotBefore, "iat": &c.IssuedAt,
		"iss": &c.Issuer, "jti": &c.ID, "send_to": &c.SendTo} {
		if raw, ok := all[name]; ok {
			if err := json.Unmarshal(raw, v); err != nil {
				return fmt.Errorf("the claim %s: %w", name, err)
			}
		}
	}
	return nil
}

// Why a user token is refused, as a metric and the log name it.
const (
	tokenMissing   = "missing"
	tokenMalformed = "malformed"   // no JWT, or one with parts that are not of the contract
	tokenAlgorithm = "algorithm"   // not that of the key
	tokenKey       = "unknown_key" // of a JWK set
	tokenSignature = "signature"
	tokenExpired   = "expired"
	tokenEarly     = "early"     // nbf or iat is in the future
	tokenNoExpiry  = "no_expiry" // #nosec G101 -- a reason
	tokenCritical  = "critical"  // it has a crit
	tokenAudience  = "audience"  // not for us
	tokenIssuer    = "issuer"    // not by whom we believe
	tokenUser      = "user"      // sub is no user id
	tokenSendTo    = "send_to"
	tokenRevoked   = "revoked"
	tokenNoKeys    = "no_keys" // #nosec G101 -- a reason: the JWK set was not fetched yet
)

var tokenReasons = []string{tokenMissing, tokenMalformed, tokenAlgorithm, tokenKey, tokenSignature, tokenExpired, tokenEarly, tokenNoExpiry, tokenCritical, tokenAudience, tokenIssuer, tokenUser, tokenSendTo, tokenRevoked, tokenNoKeys}

// tokenError is why a user token is refused.
type tokenError struct {
	reason string
	detail string // what the stranger is told
	kid    string // what the token says of its key
	alg    string
	user   string // whose it is; "" unless its signature is good
	err    error  // what the log has beside; nil: nothing
}

func (e *tokenError) Error() string { return e.detail }

// caller checks a token and returns whose it is; the error is a *tokenError.
func (u *userTokens) caller(token string) (caller, error) {
	refuse := func(reason, format string, args ...any) *tokenError {
		return &tokenError{reason: reason, detail: fmt.Sprintf(format, args...)}
	}
	if len(token) > maxTokenBytes {
		return caller{}, refuse(tokenMalformed, "the user token has more than %d bytes", maxTokenBytes)
	}
	var c userClaims
	t, err := u.parser.ParseWithClaims(token, &c, u.keyOf)
	var e *tokenError
	switch {
	case err != nil:
		e = refuse(reasonOf(err))
		e.err = err
	case u.issuer != "" && c.Issuer != u.issuer:
		e = refuse(tokenIssuer, invalidToken)
	case u.audience != "" && !slices.Contains(c.Audience, u.audience):
		e = refuse(tokenAudience, invalidToken)
	case c.Subject == "":
		e = refuse(tokenUser, "the user token has no sub, which is the user id")
	case strings.ContainsRune(c.Subject, utf8.RuneError): // what encoding/json makes of an escape that is no character
		e = refuse(tokenUser, "the sub of the user token is not valid UTF-8")
	default:
		if err := wire.CheckUser(c.Subject); err != nil {
			e = refuse(tokenUser, "the sub of the user token: %v", err)
		} else if err := wire.CheckSendTo(c.SendTo); err != nil {
			e = refuse(tokenSendTo, "the claim %v", err)
		}
	}
	if e != nil {
		if t != nil {
			e.kid, _ = t.Header["kid"].(string)
			e.alg, _ = t.Header["alg"].(string)
		}
		switch e.reason {
		case tokenExpired, tokenEarly, tokenNoExpiry, tokenAudience, tokenIssuer, tokenUser, tokenSendTo: // they are looked at behind the signature
			e.user = c.Subject
		}
		return caller{}, e
	}
	who := caller{user: c.Subject, sendTo: c.SendTo}
	if c.IssuedAt != nil {
		who.issued = c.IssuedAt.Time
	}
	return who, nil
}

// keyOf is the jwt.Keyfunc: for a token with a crit no key is looked for, or fetched.
func (u *userTokens) keyOf(t *jwt.Token) (any, error) {
	if _, ok := t.Header["crit"]; ok {
		return nil, errCritical
	}
	return u.key(t)
}

// invalidToken is all that a stranger is told of most refusals.
const invalidToken = "the user token is not valid"

// reasonOf is why golang-jwt refuses a token, and what a stranger is told of it.
func reasonOf(err error) (reason, detail string) {
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return tokenExpired, "the user token has expired"
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return tokenNoExpiry, "the user token has no exp"
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return tokenEarly, invalidToken
	case errors.Is(err, errNoSet):
		return tokenNoKeys, "user tokens cannot be checked yet; locate again later, or at another locator"
	case errors.Is(err, errCritical):
		return tokenCritical, invalidToken
	case errors.Is(err, errNoKID), errors.Is(err, errUnknownKID):
		return tokenKey, invalidToken
	case errors.Is(err, jwt.ErrTokenMalformed):
		return tokenMalformed, invalidToken
	case strings.Contains(err.Error(), "signing method"), errors.Is(err, keyfunc.ErrKeyfunc): // the method is not one of ours, or not that of the JWK
		return tokenAlgorithm, invalidToken
	}
	return tokenSignature, invalidToken
}

// checkRSA judges how long a key is.
func checkRSA(k *rsa.PublicKey) error {
	if bits := k.N.BitLen(); bits < 2048 {
		return fmt.Errorf("an RSA key of %d bits; at least 2048 are needed", bits)
	}
	return nil
}

// readPublicKey reads a PEM file with one public key, or a certificate, and
// the algorithm that fits it.
func readPublicKey(file string) (key any, alg string, err error) {
	b, err := os.ReadFile(file) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, "", err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, "", fmt.Errorf("%s has no PEM block", file)
	}
	if block.Type == "CERTIFICATE" {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", file, err)
		}
		key = cert.PublicKey
	} else if key, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
		if key, err = x509.ParsePKCS1PublicKey(block.Bytes); err != nil {
			return nil, "", fmt.Errorf("%s has no public key (BEGIN PUBLIC KEY)", file)
		}
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		if err := checkRSA(k); err != nil {
			return nil, "", fmt.Errorf("%s: %w", file, err)
		}
		return k, "RS256", nil
	case *ecdsa.PublicKey:
		alg, ok := map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[k.Curve.Params().BitSize]
		if !ok {
			return nil, "", fmt.Errorf("%s: an ECDSA key on a curve that JWT does not know", file)
		}
		return k, alg, nil
	case ed25519.PublicKey:
		return k, "EdDSA", nil
	}
	return nil, "", fmt.Errorf("%s has a key of a kind that JWT does not know", file)
}
