//! CRC-32 and CRC-32C, bit by bit through a table of 256 entries.
//!
//! **What.** The checksums of GPT headers (ISO-HDLC polynomial) and of VHDX structures (Castagnoli).
//!
//! **Why our own.** Two dozen lines for a few hundred KiB per image; a crate for each polynomial would outweigh them.
//!
//! **Invariants.** Both give the published check value for "123456789".

const fn table(polynomial: u32) -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut i = 0u32;
    while i < 256 {
        let mut value = i;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ polynomial } else { value >> 1 };
            bit += 1;
        }
        table[i as usize] = value;
        i += 1;
    }
    table
}

static IEEE: [u32; 256] = table(0xEDB8_8320);
static CASTAGNOLI: [u32; 256] = table(0x82F6_3B78);

fn crc(table: &[u32; 256], parts: &[&[u8]]) -> u32 {
    let mut crc = u32::MAX;
    for byte in parts.iter().copied().flatten() {
        crc = crc >> 8 ^ table[usize::from(crc.to_le_bytes()[0] ^ byte)];
    }
    !crc
}

/// CRC-32 (ISO-HDLC) of the concatenated parts.
pub(super) fn crc32(parts: &[&[u8]]) -> u32 {
    crc(&IEEE, parts)
}

/// CRC-32C (Castagnoli) of the concatenated parts.
pub(super) fn crc32c(parts: &[&[u8]]) -> u32 {
    crc(&CASTAGNOLI, parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_give_the_published_check_value() {
        assert_eq!(crc32(&[b"1234", b"56789"]), 0xCBF4_3926);
        assert_eq!(crc32c(&[b"123456789"]), 0xE306_9283);
    }
}
