// One of each term the encoder in devicemodel/core/firmware/aml.ts knows, for test/core/firmware/aml.test.ts.
// every-term.hex is the body (without the table header) that iasl 20200925 makes of this file:
//   iasl -of -on -p every-term every-term.asl && tail -c +37 every-term.aml | xxd -p > every-term.hex
DefinitionBlock ("", "DSDT", 2, "TEST  ", "TERMS   ", 1)
{
    Name (NUL0, 0)
    Name (SNGL, 1)
    Name (BYTE, 0xFF)
    Name (WORD, 0x100)
    Name (DWRD, 0x10000)
    Name (QWRD, 0x0000000100000000)
    Name (HUGE, 0xFFFFFFFFFFFFFFFE)
    Name (ALL1, 0xFFFFFFFFFFFFFFFF)
    Name (TEXT, "two words")
    Name (UNIC, Unicode ("Hi"))
    Name (EISA, EisaId ("PNP0A03"))
    Name (SMAL, EisaId ("PNP0000"))
    Name (UUID, ToUUID ("0811b06e-4a27-44f9-8d60-3cbbc22e7b48"))
    Name (BUFF, Buffer (4) { 0x01, 0x02 })
    Name (PACK, Package () { 0, 1, 0x1234, "x", Package () { BYTE, Package () {} }, \_SB.DEV0 })

    Scope (\_SB)
    {
        Device (DEV0)
        {
            Name (_ADR, 0x00020001)
            OperationRegion (REGI, SystemIO, 0x0500, 0x20)
            Field (REGI, DWordAcc, Lock, WriteAsOnes)
            {
                AAA_, 1,
                    , 6,
                BBB_, 1,
                Offset (0x04),
                CCC_, 32,
                Offset (0x10),
                DDD_, 64
            }
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x0060, 0x0060, 0x01, 0x01)
                IRQNoFlags () {1, 12}
                IRQ (Level, ActiveLow, Shared) {5, 9}
                IRQ (Edge, ActiveHigh, Exclusive) {}
                Memory32Fixed (ReadOnly, 0xFED00000, 0x00000400)
                Interrupt (ResourceConsumer, Level, ActiveLow, Shared) {16, 300}
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {8}
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0x0000, 0x0000, 0x00FF, 0x0000, 0x0100)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0x0000, 0x0D00, 0xFFFF, 0x0000, 0xF300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0x00000000, 0xC0000000, 0xDFFFFFFF, 0x00000000, 0x20000000)
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0x0000000000000000, 0x0000004000000000, 0x0000007FFFFFFFFF, 0x0000000000000000, 0x0000004000000000)
                Register (FFixedHW, 0x40, 0x00, 0x00000000000000E7, 0x04)
                GpioIo (Exclusive, PullDefault, 0, 0, IoRestrictionInputOnly, "\\_SB.GPO0", 0, ResourceConsumer) {30, 31}
                GpioInt (Edge, ActiveBoth, SharedAndWake, PullNone, 0, "\\_SB.GPO0", 0, ResourceConsumer) {7}
                I2cSerialBusV2 (0x0070, ControllerInitiated, 0x00061A80, AddressingMode7Bit, "\\_SB.I2C1", 0, ResourceConsumer, , Exclusive)
            })
        }
    }

    Method (MATH, 3, NotSerialized)
    {
        Store (Arg0, Local0)
        Add (Arg0, Arg1, Local1)
        And (Arg0, 0x0F, Local1)
        Or (Arg0, 0x0F, Local1)
        ShiftLeft (Arg0, 5, Local1)
        FindSetRightBit (Arg0, Local1)
        Decrement (Local1)
        Concatenate (Arg0, Arg1, Local4)
        ConcatenateResTemplate (Arg0, Arg1, Local4)
        ToInteger (Arg2, Local5)
        Return (Add (Local0, Local1))
    }

    Method (FLOW, 2, Serialized, 2)
    {
        CreateWordField (Arg0, 2, FWRD)
        CreateDWordField (Arg0, 4, FDWD)
        Store (Arg1, Local0)
        While (LLess (Local0, 10))
        {
            If (LEqual (Local0, 3)) { Break }
            Decrement (Local0)
        }
        If (LLess (Arg1, 2))
        {
            Return (0)
        }
        Else
        {
            Return (MATH (Arg0, 1, "x"))
        }
        Return (\_SB.DEV0.CCC_)
    }

    Scope (\_SB.DEV0)
    {
        Method (_STA, 0, NotSerialized)
        {
            Return (^^^NUL0)
        }
    }
}
